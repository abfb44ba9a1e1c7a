"""The file format of a journal segment: a page that names it, then records, each on pages of its own.

    page 0    magic (8) | use (16) | CRC-32 of both (4)
    record    magic (8) | use (16) | number (8) | time (8) | body size (8) | kind (1) | CRC-32 of it all (4) |
              body

A record begins on a page boundary, so no page that holds an acknowledged record is ever written again. A
segment is used many times without being emptied: `use` is drawn anew each time, and a record of an earlier
use is none. The body of an object is its file, byte for byte, whose trailer holds the checksums (see
`isocenter.common.objects.trailer`); of one that has its file already, the file's name; of a record about
others, their numbers. These two end with a CRC-32.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

PAGE: Final = 4096
USE_BYTES: Final = 16

_SEGMENT_MAGIC: Final = b"ISOCSEG1"
_RECORD_MAGIC: Final = b"ISOCREC1"
_SEGMENT: Final = struct.Struct(">8s16s")
_RECORD: Final = struct.Struct(">8s16sQQQB")
_CRC: Final = struct.Struct(">I")
HEAD_BYTES: Final = _RECORD.size + _CRC.size
_NUMBER: Final = struct.Struct(">Q")


class Kind(IntEnum):
    """What a record says."""

    OBJECT = 1
    """An object."""
    PENDING = 2
    """An object that something must follow."""
    CONFIRMED = 3
    """What had to follow the records of these numbers has followed."""
    VOID = 4
    """The records of these numbers came to nothing: their file could not be put in place."""
    NAMED = 5
    """An object whose file is durable already, under a name in the staging area."""
    NAMED_PENDING = 6
    """The same, and something must follow."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it was found. `descriptor` is the segment's, open as long as its reader says."""

    descriptor: int
    position: int
    number: int
    time: int
    size: int
    kind: Kind

    def body(self) -> bytes:
        return os.pread(self.descriptor, self.size, self.position + HEAD_BYTES)

    def numbers(self) -> set[int]:
        """Of a record that speaks of others; empty if it was cut off."""
        packed = self._checked()
        if len(packed) % _NUMBER.size:
            return set()
        return {number for (number,) in _NUMBER.iter_unpack(packed)}

    def place(self) -> tuple[str, str] | None:
        """Key of the object and name of its file, of a record that says them; None if it was cut off."""
        key, separator, name = self._checked().decode("ascii", "replace").partition("\0")
        return (key, name) if separator else None

    def _checked(self) -> bytes:
        """The body without its checksum; empty if it was cut off."""
        body = self.body()
        packed = body[: -_CRC.size]
        whole = len(body) == self.size and _CRC.pack(zlib.crc32(packed)) == body[-_CRC.size :]
        return packed if whole else b""


def segment_page(use: bytes) -> bytes:
    page = _SEGMENT.pack(_SEGMENT_MAGIC, use)
    return (page + _CRC.pack(zlib.crc32(page))).ljust(PAGE, b"\0")


def record_head(use: bytes, number: int, time: int, size: int, kind: Kind) -> bytes:
    head = _RECORD.pack(_RECORD_MAGIC, use, number, time, size, kind)
    return head + _CRC.pack(zlib.crc32(head))


def numbers_body(numbers: list[int]) -> bytes:
    return _with_checksum(b"".join(map(_NUMBER.pack, numbers)))


def place_body(key: str, name: str) -> bytes:
    return _with_checksum(f"{key}\0{name}".encode("ascii"))


def _with_checksum(packed: bytes) -> bytes:
    return packed + _CRC.pack(zlib.crc32(packed))


def pages(size: int) -> int:
    """Bytes that a record with a body of this size takes."""
    return -(-(HEAD_BYTES + size) // PAGE) * PAGE


def scan(descriptor: int) -> Iterator[Record]:
    """The records of the segment's present use, in the order of the file.

    Every page is looked at: a record that never reached the disk does not hide those behind it. Whether a
    body is whole is for the caller to find out.
    """
    end = os.fstat(descriptor).st_size
    page = os.pread(descriptor, _SEGMENT.size + _CRC.size, 0)
    if len(page) < _SEGMENT.size + _CRC.size or segment_page(use := page[8:24])[: len(page)] != page:
        return
    position = PAGE
    while position < end:
        head = os.pread(descriptor, HEAD_BYTES, position)
        record = _decode(descriptor, position, head, use)
        if record is None:
            position += PAGE
        else:
            yield record
            position += pages(record.size)


def _decode(descriptor: int, position: int, head: bytes, use: bytes) -> Record | None:
    if len(head) < HEAD_BYTES or not head.startswith(_RECORD_MAGIC) or head[8:24] != use:
        return None
    if _CRC.pack(zlib.crc32(head[: -_CRC.size])) != head[-_CRC.size :]:
        return None
    _, _, number, time, size, kind = _RECORD.unpack(head[: -_CRC.size])
    return Record(descriptor, position, number, time, size, Kind(kind))
