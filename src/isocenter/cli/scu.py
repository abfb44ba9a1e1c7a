"""A C-STORE and C-ECHO user on one blocking socket: data set bytes leave as they lie on disk.

Association negotiation uses pynetdicom's encoders; P-DATA is written directly (PS3.8 section 9.3.5), so that
a large instance costs one small buffer and no decoding. Nagle's algorithm is off: a response is waited for
after every instance.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)

from isocenter.common.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

MAX_CONTEXTS = 128
"""Presentation context ids are odd and fit one byte (PS3.8 section 9.3.2.2)."""
VERIFICATION = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_OUR_MAX_PDU = 16384
_LARGEST_PDU = 256 << 10
_C_STORE_RQ, _C_ECHO_RQ = 0x0001, 0x0030
_ASSOCIATE_AC, _ASSOCIATE_RJ, _P_DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = 2, 3, 4, 5, 6, 7
_MAX_RESPONSE = 1 << 20

Context = tuple[str, str]
"""Abstract syntax and the one transfer syntax proposed for it, so that nothing needs converting."""


class AssociationError(Exception):
    """The association was refused, aborted or lost. `text` is for people."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True, slots=True)
class Response:
    """Status (0000,0900) and Error Comment (0000,0902) of a DIMSE response."""

    status: int
    comment: str


class Association:
    """An open association. Use as a context manager: leaving it releases, or aborts after an error."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        called: str,
        calling: str,
        contexts: Sequence[Context],
        timeout: float = 60.0,
    ) -> None:
        """Raises AssociationError."""
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout)
        except OSError as error:
            raise AssociationError(f"no DICOM node answers at {host}:{port} ({error})") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._message_id = 0
        self._open = True
        try:
            self._accepted, self._max_pdu = self._negotiate(called, calling, contexts)
        except BaseException:
            self._socket.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._open

    def accepts(self, context: Context) -> bool:
        return context in self._accepted

    def echo(self) -> Response:
        """C-ECHO. Raises AssociationError."""
        command = _command(VERIFICATION[0], _C_ECHO_RQ, self._next_id(), None)
        self._send_command(self._accepted[VERIFICATION], command)
        return self._response()

    def store(
        self,
        context: Context,
        sop_instance_uid: str,
        path: Path,
        offset: int,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Response:
        """C-STORE of the bytes of `path` from `offset` to its end.

        Raises:
            KeyError: the peer did not accept `context`.
            AssociationError: the peer aborted or went away.
            OSError: the file cannot be read.
        """
        context_id = self._accepted[context]
        with path.open("rb", buffering=0) as file:
            remaining = file.seek(0, 2) - offset
            file.seek(offset)
            self._send_command(
                context_id, _command(context[0], _C_STORE_RQ, self._next_id(), sop_instance_uid)
            )
            piece = self._max_pdu - 6
            buffer = bytearray(piece + 12)
            view = memoryview(buffer)
            while True:
                wanted = min(piece, remaining)
                got = _read_full(file, view[12 : 12 + wanted])
                if got < wanted:
                    self.abort()
                    raise OSError(f"{path} became shorter while it was read")
                remaining -= got
                last = 0x02 if not remaining else 0x00
                struct.pack_into(">BxIIBB", buffer, 0, _P_DATA, got + 6, got + 2, context_id, last)
                self._write(view[: 12 + got])
                if on_bytes is not None:
                    on_bytes(got)
                if not remaining:
                    break
        return self._response()

    def release(self) -> None:
        """A-RELEASE; waits for the answer, so that the peer has seen the end of the transfer."""
        if not self._open:
            return
        self._open = False
        try:
            self._write(struct.pack(">BxII", _RELEASE_RQ, 4, 0))
            while self._read_pdu()[0] != _RELEASE_RP:
                pass
        finally:
            self._socket.close()

    def abort(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(OSError):  # the peer may be gone already: there is nobody left to tell
                self._socket.sendall(struct.pack(">BxII", _ABORT, 4, 0))
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
            return
        with contextlib.suppress(
            AssociationError
        ):  # what was answered is answered: an odd end changes nothing
            self.release()

    def _negotiate(
        self, called: str, calling: str, contexts: Sequence[Context]
    ) -> tuple[dict[Context, int], int]:
        request: Any = A_ASSOCIATE()
        request.application_context_name = _APPLICATION_CONTEXT
        request.called_ae_title, request.calling_ae_title = called, calling
        proposed: dict[int, Context] = {}
        offered = []
        for number, (abstract, transfer) in enumerate(contexts):
            context = build_context(abstract, transfer)
            context.context_id = 2 * number + 1
            proposed[context.context_id] = (abstract, transfer)
            offered.append(context)
        request.presentation_context_definition_list = offered
        length, implementation, version = (
            MaximumLengthNotification(),
            ImplementationClassUIDNotification(),
            ImplementationVersionNameNotification(),
        )
        length.maximum_length_received = _OUR_MAX_PDU
        implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        request.user_information = [length, implementation, version]
        pdu: Any = A_ASSOCIATE_RQ()
        pdu.from_primitive(request)
        self._write(pdu.encode())

        kind, head, body = self._read_pdu()
        if kind == _ASSOCIATE_RJ:
            rejected: Any = A_ASSOCIATE_RJ()
            rejected.decode(head + body)
            raise AssociationError(f"{called} refused the association: {rejected.reason_str}")
        if kind != _ASSOCIATE_AC:
            raise AssociationError(f"{called} answered the association request with PDU type {kind:#04x}")
        accepted: Any = A_ASSOCIATE_AC()
        accepted.decode(head + body)
        answer = accepted.to_primitive()
        usable = {
            proposed[context.context_id]: context.context_id
            for context in answer.presentation_context_definition_results_list
            if context.result == 0 and str(context.transfer_syntax[0]) == proposed[context.context_id][1]
        }
        limit = answer.maximum_length_received or _LARGEST_PDU
        return usable, min(limit, _LARGEST_PDU)

    def _send_command(self, context_id: int, command: bytes) -> None:
        head = struct.pack(">BxIIBB", _P_DATA, len(command) + 6, len(command) + 2, context_id, 0x03)
        self._write(head + command)

    def _response(self) -> Response:
        command = bytearray()
        while True:
            kind, _, body = self._read_pdu()
            if kind == _ABORT:
                self._open = False
                self._socket.close()
                raise AssociationError("the peer aborted the association")
            if kind != _P_DATA:
                self.abort()
                raise AssociationError(f"PDU type {kind:#04x} where a response was due")
            position = 0
            while position + 6 <= len(body):
                length, _, control = struct.unpack_from(">IBB", body, position)
                command += body[position + 6 : position + 4 + length]
                position += 4 + length
                if control & 0x03 == 0x03:
                    return _parse_response(bytes(command))

    def _read_pdu(self) -> tuple[int, bytes, bytes]:
        head = self._read(6)
        kind, length = struct.unpack(">BxI", head)
        if length > _MAX_RESPONSE:
            self.abort()
            raise AssociationError("the peer sent a PDU longer than was agreed")
        return kind, head, self._read(length)

    def _read(self, count: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < count:
            try:
                piece = self._socket.recv(count - len(pieces))
            except OSError as error:
                raise self._lost(str(error)) from error
            if not piece:
                raise self._lost("it closed the connection")
            pieces += piece
        return bytes(pieces)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(str(error)) from error

    def _lost(self, why: str) -> AssociationError:
        self._open = False
        self._socket.close()
        return AssociationError(f"the peer is gone: {why}")

    def _next_id(self) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id


def _command(sop_class_uid: str, field: int, message_id: int, sop_instance_uid: str | None) -> bytes:
    """A request's command set: implicit VR little endian, group length first (PS3.7 section 6.3.1)."""
    elements = [
        (0x0002, _uid(sop_class_uid)),
        (0x0100, struct.pack("<H", field)),
        (0x0110, struct.pack("<H", message_id)),
    ]
    if sop_instance_uid is None:
        elements.append((0x0800, b"\x01\x01"))
    else:
        elements += [(0x0700, b"\x00\x00"), (0x0800, b"\x01\x00"), (0x1000, _uid(sop_instance_uid))]
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def _uid(text: str) -> bytes:
    raw = text.encode("ascii")
    return raw + b"\0" if len(raw) % 2 else raw


def _parse_response(command: bytes) -> Response:
    status, comment, position = 0x0110, "", 0
    while position + 8 <= len(command):
        _, element, length = struct.unpack_from("<HHI", command, position)
        value = command[position + 8 : position + 8 + length]
        if element == 0x0900 and length == 2:
            status = int.from_bytes(value, "little")
        elif element == 0x0902:
            comment = value.decode("ascii", "replace").strip(" \0")
        position += 8 + length
    return Response(status, comment)


def _read_full(file: Any, view: memoryview) -> int:
    """`readinto` may return less than asked for; a short P-DATA fragment in the middle would be wrong."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            break
        done += count
    return done
