"""The four UIDs that place an instance, read from the first bytes of a data set, in bounds and without trust.

Tolerated, because archives meet them: missing group lengths; odd value lengths; elements out of order, as
long as the four stand before the first element above (0020,000E); elements without VR in an explicit data
set; a data set whose first element shows explicit VR although its transfer syntax says implicit; a sequence
delimiter where the item's own is missing. Refused: whatever leaves the walk without ground, see
`HeaderScanner`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from isocenter.common.dicom.uids import is_big_endian, is_deflated, is_implicit, is_valid_uid
from isocenter.common.dicom.vr import (
    ITEM,
    ITEM_DELIMITATION,
    KNOWN_VRS,
    MAX_DEPTH,
    MAX_ELEMENTS,
    SEQUENCE_DELIMITATION,
    SHORT_LENGTH_VRS,
    UNDEFINED_LENGTH,
)
from isocenter.common.errors import InvalidInstance, RejectReason

DEFAULT_HEADER_LIMIT: Final = 8 << 20
"""Bytes of (inflated) data set that may come before the four UIDs are known."""
MAX_INFLATE_RATIO: Final = 200
"""Deflate reaches 1028:1 with hostile input; data sets stay below 20:1."""

_RATIO_FREE_BYTES: Final = 1 << 20
_INFLATE_PIECE: Final = 64 << 10
_MAX_UID_VALUE: Final = 128
_GROUP_2: Final = b"\2\0"
_LAST: Final = 0x0020000E
_WANTED: Final = {
    0x00080016: "sop_class_uid",
    0x00080018: "sop_instance_uid",
    0x0020000D: "study_instance_uid",
    0x0020000E: "series_instance_uid",
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """The three shapes of an element header: tag with length; tag, VR, short length; long length."""

    long: struct.Struct
    short: struct.Struct
    length: struct.Struct


_LITTLE: Final = _Layout(struct.Struct("<HHI"), struct.Struct("<HH2sH"), struct.Struct("<I"))
_BIG: Final = _Layout(struct.Struct(">HHI"), struct.Struct(">HH2sH"), struct.Struct(">I"))


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """The UIDs every composite instance has (PS3.3 C.12.1, C.7.2.1, C.7.3.1). PHI outside the index."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


class HeaderScanner:
    """Walks a data set that arrives in any pieces until the four UIDs are known or (0020,000E) is passed.

    Holds less than 200 bytes between pieces. Time is linear in the bytes fed. Nesting uses an explicit stack.

    Raises (from `feed` and `finish`) InvalidInstance with
        MISSING_UID: one of the four is absent or empty;
        INVALID_UID: one of the four breaks PS3.5 section 9.1;
        MALFORMED: the walk loses its ground, the four disagree with themselves, or the data set ends too
        early;
        TOO_DEEP: sequences before them are nested deeper than 32;
        TOO_LARGE: the four do not come within `limit` bytes, or a deflated data set inflates beyond the
        ratio.

    Args:
        transfer_syntax_uid: unknown ones are read as explicit VR little endian.
        limit: bytes of (inflated) data set to walk at most.
    """

    def __init__(self, transfer_syntax_uid: str, limit: int = DEFAULT_HEADER_LIMIT) -> None:
        self._layout = _BIG if is_big_endian(transfer_syntax_uid) else _LITTLE
        self._explicit = not is_implicit(transfer_syntax_uid)
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if is_deflated(transfer_syntax_uid) else None
        self._limit = limit
        self._header: InstanceHeader | None = None
        self._found: dict[int, str] = {}
        # Open sequences and items of undefined length: True for an item. `_outer` remembers, per open
        # sequence, how the data set around it is encoded.
        self._open: list[bool] = []
        self._outer: list[tuple[bool, _Layout]] = []
        self._skip = 0
        self._rest = b""
        self._walked = 0
        self._deflated = 0
        self._elements = 0

    @property
    def header(self) -> InstanceHeader | None:
        return self._header

    def feed(self, data: bytes | bytearray | memoryview) -> InstanceHeader | None:
        """The header once it is known, else None. Bytes after it are not looked at."""
        if self._header is not None:
            return self._header
        if self._inflate is None:
            return self._feed(data)
        self._deflated += len(data)
        pending: bytes | bytearray | memoryview = data
        while self._header is None:
            try:
                piece = self._inflate.decompress(pending, _INFLATE_PIECE)
            except zlib.error:
                raise InvalidInstance(
                    RejectReason.MALFORMED, "the deflated data set does not inflate"
                ) from None
            if not piece:
                break
            pending = self._inflate.unconsumed_tail
            inflated = self._walked + len(piece)
            if inflated > _RATIO_FREE_BYTES and inflated > self._deflated * MAX_INFLATE_RATIO:
                raise InvalidInstance(
                    RejectReason.TOO_LARGE, "the data set inflates beyond the permitted ratio"
                )
            self._feed(piece)
        return self._header

    def finish(self) -> InstanceHeader:
        """The header after the last byte."""
        if self._header is not None:
            return self._header
        if self._skip or self._rest or self._open:
            raise InvalidInstance(RejectReason.MALFORMED, "the data set ends within an element")
        return self._conclude()

    def _feed(self, data: bytes | bytearray | memoryview) -> InstanceHeader | None:
        self._walked += len(data)
        if self._skip >= len(data):
            self._skip -= len(data)
        else:
            if self._rest:
                data = self._rest + bytes(data)
            consumed = self._walk(data, self._skip)
            if self._header is None:
                self._skip = max(0, consumed - len(data))
                self._rest = bytes(memoryview(data)[consumed:])
        if self._header is None and self._walked > self._limit:
            raise InvalidInstance(RejectReason.TOO_LARGE, "the header passes the limit")
        return self._header

    def _walk(self, data: bytes | bytearray | memoryview, position: int) -> int:
        """Walks whole elements from `position`; returns where it stopped: past the end inside a value."""
        size = len(data)
        if self._elements == 0 and bytes(data[position : position + 2]) == _GROUP_2:
            # Behind file meta information of ours nobody could tell where that ends and this begins.
            raise InvalidInstance(RejectReason.MALFORMED, "the data set begins with file meta information")
        while position + 8 <= size:
            layout = self._layout
            if self._explicit and not self._open:
                position = self._skip_short(data, position)
                if position + 8 > size:
                    break
            group, element, length = layout.long.unpack_from(data, position)
            tag = group << 16 | element
            if not self._open and tag > _LAST:
                self._conclude()
                return position
            self._elements += 1
            if self._elements > MAX_ELEMENTS:
                raise InvalidInstance(RejectReason.MALFORMED, "too many elements")
            if group == 0xFFFE or (self._open and not self._open[-1]):
                position = self._walk_item(tag, length, position + 8)
                continue
            start = position + 8
            opens_implicit = False
            if (
                self._elements == 1
                and not self._explicit
                and layout.short.unpack_from(data, position)[2] in KNOWN_VRS
            ):
                self._explicit = True
            if self._explicit:
                _, _, vr, short_length = layout.short.unpack_from(data, position)
                if vr in SHORT_LENGTH_VRS:
                    length = short_length
                elif vr.isalpha() and vr.isupper():
                    start += 4
                    if start > size:
                        self._elements -= 1
                        return position
                    (length,) = layout.length.unpack_from(data, position + 8)
                    opens_implicit = vr == b"UN" or vr not in KNOWN_VRS
                # Anything else is an element written without VR: its length stands where the VR should.
            if not self._open and tag in _WANTED:
                if length > _MAX_UID_VALUE:
                    reason = (
                        RejectReason.MALFORMED if length == UNDEFINED_LENGTH else RejectReason.INVALID_UID
                    )
                    raise InvalidInstance(reason, f"{_WANTED[tag]} is too long")
                if start + length > size:
                    self._elements -= 1
                    return position
                self._take(tag, bytes(data[start : start + length]))
                if len(self._found) == len(_WANTED):
                    self._conclude()
                    return position
            if length == UNDEFINED_LENGTH:
                self._enter(implicit=opens_implicit)
                position = start
            else:
                position = start + length
        return position

    def _skip_short(self, data: bytes | bytearray | memoryview, position: int) -> int:
        """Skips unwanted top-level elements with 16-bit lengths, most of a header, in a tight loop."""
        last = len(data) - 8
        unpack, wanted, short_vrs = self._layout.short.unpack_from, _WANTED, SHORT_LENGTH_VRS
        while position <= last:
            group, element, vr, length = unpack(data, position)
            tag = group << 16 | element
            if vr not in short_vrs or tag in wanted or tag > _LAST:
                break
            position += 8 + length
            self._elements += 1
        return position

    def _walk_item(self, tag: int, length: int, start: int) -> int:
        """An item or a delimiter; the position after it."""
        if tag == ITEM and self._open and not self._open[-1]:
            if length != UNDEFINED_LENGTH:
                return start + length
            self._open.append(True)
            return start
        if tag == ITEM_DELIMITATION and self._open and self._open[-1]:
            self._open.pop()
            return start
        if tag == SEQUENCE_DELIMITATION and self._open:
            if self._open[-1]:
                self._open.pop()
            self._open.pop()
            self._explicit, self._layout = self._outer.pop()
            return start
        raise InvalidInstance(RejectReason.MALFORMED, "an item or delimiter stands where none may")

    def _enter(self, *, implicit: bool) -> None:
        if len(self._outer) >= MAX_DEPTH:
            raise InvalidInstance(RejectReason.TOO_DEEP, f"sequences are nested deeper than {MAX_DEPTH}")
        self._open.append(False)
        self._outer.append((self._explicit, self._layout))
        if implicit:
            # UN of undefined length holds implicit VR little endian whatever surrounds it (PS3.5 section
            # 6.2.2).
            self._explicit, self._layout = False, _LITTLE

    def _take(self, tag: int, value: bytes) -> None:
        text = value.decode("ascii", "replace").strip(" \0")
        if not text:
            raise InvalidInstance(RejectReason.MISSING_UID, f"{_WANTED[tag]} is empty")
        if not is_valid_uid(text):
            raise InvalidInstance(RejectReason.INVALID_UID, f"{_WANTED[tag]} is no UID")
        if self._found.setdefault(tag, text) != text:
            raise InvalidInstance(
                RejectReason.MALFORMED, f"{_WANTED[tag]} appears twice with different values"
            )

    def _conclude(self) -> InstanceHeader:
        for tag, name in _WANTED.items():
            if tag not in self._found:
                raise InvalidInstance(RejectReason.MISSING_UID, f"{name} is absent")
        self._header = InstanceHeader(**{name: self._found[tag] for tag, name in _WANTED.items()})
        return self._header
