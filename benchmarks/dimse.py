"""A lean C-STORE sender: raw data set bytes from memory, one blocking socket, no DICOM library.

It exists so that a benchmark measures the receiver and not the sender, and so that the fault suite knows
exactly which instance was acknowledged. It obeys the receiver's maximum PDU length (PS3.8 annex D.1) and
waits for each response before the next request, as every sender does that negotiates no asynchronous window.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

EXPLICIT_LE = "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION_UID = b"2.25.112233445566778899001122334455667788990"
_DEFAULT_PDU = 128 * 1024
"""Fragment size where the receiver announces 0, which means no limit."""
_IOVECS = 512
"""Buffers per sendmsg call; Linux allows 1,024."""

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
C_ECHO_RQ = 0x0030
C_ECHO_RSP = 0x8030


class AssociationError(Exception):
    """The peer refused, aborted, closed the connection or broke the protocol. The instance in flight was not
    acknowledged.
    """


@dataclass(frozen=True, slots=True)
class DataSet:
    """One instance: `parts` concatenated are the data set's bytes in Explicit VR Little Endian."""

    sop_class_uid: str
    sop_instance_uid: str
    parts: Sequence[bytes | memoryview]

    @property
    def size(self) -> int:
        return sum(len(part) for part in self.parts)


class Association:
    """One association as SCU. Raises AssociationError from every method."""

    def __init__(
        self,
        address: tuple[str, int],
        sop_classes: Sequence[str],
        *,
        called: str = "ISOCENTER",
        calling: str = "BENCH",
        timeout: float = 120.0,
    ) -> None:
        self._contexts = {uid: 2 * number + 1 for number, uid in enumerate(sop_classes)}
        self._message_id = 0
        self.max_pdu = _DEFAULT_PDU
        try:
            self._socket = socket.create_connection(address, timeout=timeout)
        except OSError as error:
            raise AssociationError(f"connect: {error}") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._negotiate(called, calling)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.release()
        else:
            self._socket.close()

    def store(self, instance: DataSet) -> int:
        """Sends one instance and returns the status of the C-STORE-RSP (PS3.7 section 9.1.1)."""
        self._message_id = self._message_id % 0xFFFF + 1
        sop_class = instance.sop_class_uid.encode()
        command = encode_command(
            (0x0002, _padded(sop_class)),
            (0x0100, struct.pack("<H", C_STORE_RQ)),
            (0x0110, struct.pack("<H", self._message_id)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", 1)),
            (0x1000, _padded(instance.sop_instance_uid.encode())),
        )
        context = self._contexts[instance.sop_class_uid]
        self._send_all([_pdata_header(len(command), context, 3), command], instance.parts, context)
        return self._response(C_STORE_RSP)

    def echo(self) -> int:
        """C-ECHO; the association must have been opened with the Verification SOP Class."""
        self._message_id = self._message_id % 0xFFFF + 1
        command = encode_command(
            (0x0002, _padded(VERIFICATION.encode())),
            (0x0100, struct.pack("<H", C_ECHO_RQ)),
            (0x0110, struct.pack("<H", self._message_id)),
            (0x0800, struct.pack("<H", 0x0101)),
        )
        context = self._contexts[VERIFICATION]
        self._write([_pdata_header(len(command), context, 3), command])
        return self._response(C_ECHO_RSP)

    def release(self) -> None:
        """A-RELEASE and close."""
        try:
            self._write([struct.pack(">BxL4x", 0x05, 4)])
            kind, _ = self._read_pdu()
            if kind != 0x06:
                raise AssociationError(f"PDU type {kind:#04x} instead of A-RELEASE-RP")
        finally:
            self._socket.close()

    def abort(self) -> None:
        """Closes the connection without A-RELEASE, as a sender that died does."""
        self._socket.close()

    def _negotiate(self, called: str, calling: str) -> None:
        items = [_item(0x10, _APPLICATION_CONTEXT)]
        syntax = _item(0x40, EXPLICIT_LE.encode())
        for uid, context in self._contexts.items():
            items.append(_item(0x20, struct.pack("B3x", context) + _item(0x30, uid.encode()) + syntax))
        user = _item(0x51, struct.pack(">L", 16384)) + _item(0x52, _IMPLEMENTATION_UID)
        items.append(_item(0x50, user))
        fixed = struct.pack(">H2x16s16s32x", 1, called.encode().ljust(16), calling.encode().ljust(16))
        body = fixed + b"".join(items)
        self._write([struct.pack(">BxL", 0x01, len(body)) + body])
        kind, answer = self._read_pdu()
        if kind != 0x02:
            raise AssociationError(f"association refused: PDU type {kind:#04x}")
        refused = [
            context[0] for number, context in _items(answer[68:]) if number == 0x21 and context[2] != 0
        ]
        if refused:
            raise AssociationError(f"presentation contexts refused: {refused}")
        for number, item in _items(answer[68:]):
            if number == 0x50:
                for sub, value in _items(item):
                    if sub == 0x51:
                        announced = int.from_bytes(value, "big")
                        self.max_pdu = announced or _DEFAULT_PDU

    def _send_all(
        self, pending: list[bytes | memoryview], parts: Sequence[bytes | memoryview], context: int
    ) -> None:
        """Fragments `parts` into P-DATA-TF PDUs behind what is pending, without copying the parts."""
        room = self.max_pdu - 6
        left = sum(len(part) for part in parts)
        full_header = _pdata_header(room, context, 0)
        pieces = _pieces(parts)
        piece = next(pieces, memoryview(b""))
        if not left:
            pending.append(_pdata_header(0, context, 2))  # an empty data set still has a last fragment
        while left:
            size = min(room, left)
            left -= size
            pending.append(full_header if left else _pdata_header(size, context, 2))
            while size:
                if not piece:
                    piece = next(pieces)
                cut = piece[:size]
                pending.append(cut)
                piece = piece[len(cut) :]
                size -= len(cut)
            if len(pending) >= _IOVECS:
                self._write(pending)
                pending = []
        if pending:
            self._write(pending)

    def _write(self, buffers: Sequence[bytes | memoryview]) -> None:
        try:
            write_all(self._socket, buffers)
        except OSError as error:
            raise AssociationError(f"send: {error}") from error

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._socket.recv(size - len(data))
            except OSError as error:
                raise AssociationError(f"receive: {error}") from error
            if not piece:
                raise AssociationError("the peer closed the connection")
            data += piece
        return bytes(data)

    def _read_pdu(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BxL", self._read(6))
        if length > 1 << 20:
            raise AssociationError("PDU longer than 1 MiB from the peer")
        return kind, self._read(length)

    def _response(self, field: int) -> int:
        command = bytearray()
        while True:
            kind, body = self._read_pdu()
            if kind == 0x07:
                raise AssociationError("the peer aborted the association")
            if kind != 0x04:
                raise AssociationError(f"PDU type {kind:#04x} instead of P-DATA-TF")
            at = 0
            while at < len(body):
                length, _, control = struct.unpack_from(">LBB", body, at)
                command += body[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 2:
                    return self._status(decode_command(bytes(command)), field)

    def _status(self, elements: dict[int, bytes], field: int) -> int:
        if int.from_bytes(elements[0x0100], "little") != field:
            raise AssociationError("a response to another command")
        if int.from_bytes(elements[0x0120], "little") != self._message_id:
            raise AssociationError("a response to another message")
        return int.from_bytes(elements[0x0900], "little")


def write_all(connection: socket.socket, buffers: Sequence[bytes | memoryview]) -> None:
    """Sends all buffers, without copying them together. Raises OSError."""
    views = [memoryview(buffer) for buffer in buffers]
    total = sum(len(view) for view in views)
    sent = connection.sendmsg(views)
    while sent < total:
        total -= sent
        while sent >= len(views[0]):
            sent -= len(views.pop(0))
        views[0] = views[0][sent:]
        sent = connection.sendmsg(views)


def encode_command(*elements: tuple[int, bytes]) -> bytes:
    """A command set: group 0000 in Implicit VR Little Endian, group length first (PS3.7 section 6.3.1)."""
    body = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def decode_command(data: bytes) -> dict[int, bytes]:
    elements: dict[int, bytes] = {}
    at = 0
    while at + 8 <= len(data):
        _, number, length = struct.unpack_from("<HHL", data, at)
        elements[number] = data[at + 8 : at + 8 + length]
        at += 8 + length
    return elements


def _padded(uid: bytes) -> bytes:
    return uid + b"\0" if len(uid) % 2 else uid


def _pdata_header(size: int, context: int, control: int) -> bytes:
    return struct.pack(">BxLLBB", 0x04, size + 6, size + 2, context, control)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        kind, length = struct.unpack_from(">BxH", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length


def _pieces(parts: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
    for part in parts:
        if len(part):
            yield memoryview(part)
