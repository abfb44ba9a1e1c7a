"""A lean STOW-RS sender: Part 10 bytes from memory, one blocking socket per connection, kept open."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from benchmarks.dimse import EXPLICIT_LE, DataSet, write_all

_BOUNDARY = b"isocenter-benchmark-boundary"
_PART = b"--" + _BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"
_END = b"--" + _BOUNDARY + b"--\r\n"
_LONGEST_HEADER = 64 << 10
_STORED = "00081199"
"""Referenced SOP Sequence: what was stored (PS3.18 table I.2-1)."""


class StowError(Exception):
    """The server refused, closed the connection or answered what cannot be read."""


class StowConnection:
    """One HTTP/1.1 connection; opened again where the server closes it after an answer. Raises StowError."""

    def __init__(self, address: tuple[str, int], *, timeout: float = 300.0) -> None:
        self._address = address
        self._timeout = timeout
        self._socket = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def store(self, instances: Sequence[DataSet]) -> int:
        """One request; how many instances the answer says were stored."""
        heads = [part10_head(instance) for instance in instances]
        length = len(_END) + sum(
            len(_PART) + len(head) + instance.size + 2
            for head, instance in zip(heads, instances, strict=True)
        )
        request = (
            "POST /dicom-web/studies HTTP/1.1\r\n"
            f"Host: {self._address[0]}:{self._address[1]}\r\n"
            f'Content-Type: multipart/related; type="application/dicom"; boundary={_BOUNDARY.decode()}\r\n'
            f"Accept: application/dicom+json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()
        try:
            write_all(self._socket, [request])
            for head, instance in zip(heads, instances, strict=True):
                write_all(self._socket, [_PART, head, *instance.parts, b"\r\n"])
            write_all(self._socket, [_END])
            status, body, closes = self._answer()
        except OSError as error:
            raise StowError(f"connection: {error}") from error
        if closes:
            self._socket.close()
            self._socket = self._connect()
        if status not in {200, 202}:
            raise StowError(f"answered {status}")
        try:
            return len(json.loads(body).get(_STORED, {}).get("Value", []))
        except ValueError as error:
            raise StowError("the answer is not JSON") from error

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection(self._address, timeout=self._timeout)
        except OSError as error:
            raise StowError(f"connect: {error}") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _answer(self) -> tuple[int, bytes, bool]:
        """Status, body, and whether the server closes."""
        data = bytearray()
        while b"\r\n\r\n" not in data:
            if len(data) > _LONGEST_HEADER:
                raise StowError("a header without an end")
            self._read_into(data)
        head, _, rest = bytes(data).partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        body = bytearray(rest)
        closes = fields.get("connection", "").lower() == "close"
        if "content-length" in fields:
            while len(body) < int(fields["content-length"]):
                self._read_into(body)
        elif "chunked" in fields.get("transfer-encoding", ""):
            body = self._chunks(body)
        else:
            raise StowError("an answer without a length")
        return int(lines[0].split()[1]), bytes(body), closes

    def _chunks(self, data: bytearray) -> bytearray:
        body, at = bytearray(), 0
        while True:
            while (end := data.find(b"\r\n", at)) < 0:
                self._read_into(data)
            size = int(data[at:end].split(b";")[0], 16)
            at = end + 2
            while len(data) < at + size + 2:
                self._read_into(data)
            if not size:
                return body
            body += data[at : at + size]
            at += size + 2

    def _read_into(self, data: bytearray) -> None:
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise StowError("the server closed the connection")
        data += piece


def part10_head(instance: DataSet) -> bytes:
    """Preamble and file meta information (PS3.10 section 7.1) in front of the data set."""
    meta = b"".join(
        _meta(number, vr, value)
        for number, vr, value in (
            (0x0001, b"OB", b"\0\1"),
            (0x0002, b"UI", instance.sop_class_uid.encode()),
            (0x0003, b"UI", instance.sop_instance_uid.encode()),
            (0x0010, b"UI", EXPLICIT_LE.encode()),
            (0x0012, b"UI", b"2.25.112233445566778899001122334455667788990"),
        )
    )
    return bytes(128) + b"DICM" + _meta(0x0000, b"UL", struct.pack("<L", len(meta))) + meta


def _meta(number: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2s2xL", 2, number, vr, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value
