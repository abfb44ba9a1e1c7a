"""A C-STORE receiver that keeps nothing: `python -m benchmarks.sink` prints its port and serves until killed.

What the sender reaches against it is what the sender and the loopback allow; a receiver cannot look faster.
"""

from __future__ import annotations

import socket
import struct
import threading

from benchmarks.dimse import C_STORE_RSP, decode_command, encode_command

_MAX_PDU = 128 << 10
_CONTEXT = "1.2.840.10008.3.1.1.1"
_EXPLICIT_LE = b"1.2.840.10008.1.2.1"


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(_MAX_PDU + 6))
    command = bytearray()
    answer = b""
    with connection:
        while True:
            head = buffer[:6]
            if connection.recv_into(head, 6, socket.MSG_WAITALL) < 6:
                return
            kind, length = struct.unpack(">BxL", head)
            body = buffer[:length]
            if connection.recv_into(body, length, socket.MSG_WAITALL) < length:
                return
            if kind == 0x01:
                connection.sendall(_accept(bytes(body)))
            elif kind == 0x05:
                connection.sendall(struct.pack(">BxL4x", 0x06, 4))
            elif kind == 0x04:
                context, control = body[4], body[5]
                if control & 1:
                    command += body[6:]
                    if control & 2:
                        answer = _success(bytes(command), context)
                        command.clear()
                elif control & 2:
                    connection.sendall(answer)
            else:
                return


def _accept(request: bytes) -> bytes:
    """A-ASSOCIATE-AC that takes every presentation context."""
    items, at = [_item(0x10, _CONTEXT.encode())], 68
    while at + 4 <= len(request):
        kind, length = struct.unpack_from(">BxH", request, at)
        if kind == 0x20:
            context = request[at + 4]
            items.append(_item(0x21, struct.pack("B3x", context) + _item(0x40, _EXPLICIT_LE)))
        at += 4 + length
    items.append(_item(0x50, _item(0x51, struct.pack(">L", _MAX_PDU)) + _item(0x52, b"2.25.1")))
    body = request[:68] + b"".join(items)
    return struct.pack(">BxL", 0x02, len(body)) + body


def _success(request: bytes, context: int) -> bytes:
    """C-STORE-RSP with status 0000 (PS3.7 section 9.3.1.2)."""
    asked = decode_command(request)
    command = encode_command(
        (0x0002, asked[0x0002]),
        (0x0100, struct.pack("<H", C_STORE_RSP)),
        (0x0120, asked[0x0110]),
        (0x0800, struct.pack("<H", 0x0101)),
        (0x0900, struct.pack("<H", 0)),
        (0x1000, asked[0x1000]),
    )
    return struct.pack(">BxLLBB", 0x04, len(command) + 6, len(command) + 2, context, 3) + command


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


if __name__ == "__main__":
    main()
