"""A whole data set held to its own word: every length, every depth, and how much pixel data it says there is.

Readers that believe a length read past a buffer, and readers that recurse run out of stack. So nothing is
stored whose lengths point beyond its end, whose sequences are nested without end, or which promises more
pixels than it brings. Nothing is decoded, and values are skipped, not read: what an element costs does not
depend on its size.

Tolerated, because archives meet them: what `header` tolerates; delimiters that nobody needs; more pixel data
than the attributes promise; an empty Pixel Data; zeros behind the last element.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import Final, NamedTuple

from isocenter.common.dicom.header import MAX_INFLATE_RATIO
from isocenter.common.dicom.pixels import PIXEL_ELEMENTS, PIXEL_FACTS, PixelFacts
from isocenter.common.dicom.uids import is_big_endian, is_deflated, is_implicit
from isocenter.common.dicom.values import dictionary_vr
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

MAX_INFLATED_BYTES: Final = 4 << 30
"""Of a deflated data set."""

_RATIO_FREE_BYTES: Final = 1 << 20
_INFLATE_PIECE: Final = 64 << 10
_PIXEL_GROUP: Final = 0x0028
_DELIMITER_GROUP: Final = 0xFFFE
_PIXEL_VRS: Final = frozenset((b"OB", b"OW"))
_NONE: Final = -1
"""End of a container that a delimiter ends."""
_ITEM, _SEQUENCE, _FRAGMENTS = range(3)


class _Layout(NamedTuple):
    long: struct.Struct
    short: struct.Struct
    length: struct.Struct


_LITTLE: Final = _Layout(struct.Struct("<HHI"), struct.Struct("<HH2sH"), struct.Struct("<I"))
_BIG: Final = _Layout(struct.Struct(">HHI"), struct.Struct(">HH2sH"), struct.Struct(">I"))


class _Container(NamedTuple):
    """What is open. `explicit` and `layout` are those of the data set around it."""

    kind: int
    end: int
    explicit: bool
    layout: _Layout


class BodyScanner:
    """Walks a data set, fed in any pieces, from its first element to its last byte.

    Holds less than 200 bytes between pieces. Time is linear in the elements. Nesting uses an explicit stack.

    Raises (from `feed` and `finish`) InvalidInstance with
        MALFORMED: a length points beyond the end of what holds it, the data set ends within an element, a
        sequence or the deflated stream, or a delimiter or item stands where none may;
        TOO_DEEP: sequences are nested deeper than 32;
        TOO_LARGE: more than a million elements, items and fragments, or the data set inflates beyond 200:1
        or 4 GiB;
        PIXEL_MISMATCH: Rows, Columns, Samples per Pixel, Bits Allocated and Number of Frames promise more
        than Pixel Data holds.
    """

    def __init__(self, transfer_syntax_uid: str, *, inflated_limit: int = MAX_INFLATED_BYTES) -> None:
        self._layout = _BIG if is_big_endian(transfer_syntax_uid) else _LITTLE
        self._explicit = not is_implicit(transfer_syntax_uid)
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if is_deflated(transfer_syntax_uid) else None
        self._inflated_limit = inflated_limit
        self._pixels = PixelFacts(transfer_syntax_uid)
        self._open: list[_Container] = []
        self._depth = 0
        self._fragments = 0
        self._base = 0
        self._skip = 0
        self._rest = b""
        self._deflated = 0
        self._inflated = 0
        self._elements = 0

    @property
    def elements(self) -> int:
        """Walked until now."""
        return self._elements

    @property
    def deflated(self) -> bool:
        """A piece may cost as much as 200 times its size: feed it beside the event loop."""
        return self._inflate is not None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes; the buffer may be reused once this returns."""
        inflate = self._inflate
        if inflate is None:
            if self._skip >= len(data):
                # Most of an image: inside of one value.
                self._skip -= len(data)
                self._base += len(data)
            else:
                self._feed(data)
            return
        self._deflated += len(data)
        pending: bytes | bytearray | memoryview = data
        while True:
            try:
                piece = inflate.decompress(pending, _INFLATE_PIECE)
            except zlib.error:
                raise _malformed("the deflated data set does not inflate") from None
            if not piece:
                return
            pending = inflate.unconsumed_tail
            self._inflated += len(piece)
            if self._inflated > min(
                self._inflated_limit, max(_RATIO_FREE_BYTES, self._deflated * MAX_INFLATE_RATIO)
            ):
                raise InvalidInstance(RejectReason.TOO_LARGE, "the data set inflates beyond the limit")
            self._feed(piece)

    def finish(self) -> None:
        """Call it after the last byte."""
        if self._inflate is not None and not self._inflate.eof:
            raise _malformed("the deflated data set breaks off")
        self._close(self._base)
        if self._skip or self._open or self._rest.strip(b"\0"):
            raise _malformed("the data set ends within an element")

    def _feed(self, data: bytes | bytearray | memoryview) -> None:
        if self._rest:
            data = self._rest + bytes(data)
        consumed = self._walk(data, self._skip)
        size = len(data)
        if consumed >= size:
            self._skip, self._rest = consumed - size, b""
            self._base += size
        else:
            self._skip, self._rest = 0, bytes(memoryview(data)[consumed:])
            self._base += consumed

    def _walk(self, data: bytes | bytearray | memoryview, position: int) -> int:
        """Walks whole elements from `position`; returns where it stopped: past the end inside a value."""
        size, base = len(data), self._base
        while True:
            if self._open:
                self._close(base + position)
            if self._explicit:
                position = self._skip_short(data, position)
                if self._elements > MAX_ELEMENTS:
                    raise InvalidInstance(RejectReason.TOO_LARGE, "too many elements")
                if self._open:
                    self._close(base + position)
            if position + 8 > size:
                return position
            container = self._open[-1] if self._open else None
            group, element, length = self._layout.long.unpack_from(data, position)
            tag = group << 16 | element
            self._elements += 1
            start = position + 8
            if container is not None and container.kind != _ITEM:
                position = self._item(container, tag, length, start)
                continue
            if group == _DELIMITER_GROUP:
                self._delimiter(container, tag)
                position = start
                continue
            vr = b""
            if self._elements == 1 and not self._explicit:
                self._explicit = self._layout.short.unpack_from(data, position)[2] in KNOWN_VRS
            if self._explicit:
                _, _, vr, short_length = self._layout.short.unpack_from(data, position)
                if vr in SHORT_LENGTH_VRS:
                    length = short_length
                elif vr.isalpha() and vr.isupper():
                    start += 4
                    if start > size:
                        self._elements -= 1
                        return position
                    (length,) = self._layout.length.unpack_from(data, position + 8)
                else:
                    vr = b""  # written without VR: the length stands where it should
            if container is None and group in (_PIXEL_GROUP, 0x7FE0):
                if self._pixels.wants(tag, length) and start + length > size:
                    self._elements -= 1
                    return position
                self._pixels.take(tag, length, data, start, big_endian=self._layout is _BIG)
            position = self._value(tag, vr, length, start)

    def _skip_short(self, data: bytes | bytearray | memoryview, position: int) -> int:
        """Skips elements with 16-bit lengths, most of a data set, in a tight loop."""
        last = len(data) - 8
        if self._open:
            kind, end, *_ = self._open[-1]
            if kind != _ITEM:
                return position
            if end != _NONE:
                last = min(last, end - self._base - 8)
        unpack, short_vrs = self._layout.short.unpack_from, SHORT_LENGTH_VRS
        wanted, count = PIXEL_FACTS, self._elements
        while position <= last:
            group, element, vr, length = unpack(data, position)
            if vr not in short_vrs:
                break
            if group >= _PIXEL_GROUP and (
                group == _DELIMITER_GROUP or (group == _PIXEL_GROUP and element in wanted)
            ):
                break
            position += 8 + length
            count += 1
        self._elements = count
        return position

    def _value(self, tag: int, vr: bytes, length: int, start: int) -> int:
        """Enters a value that is walked, and steps over any other; the position after that."""
        if length == UNDEFINED_LENGTH:
            if tag in PIXEL_ELEMENTS or vr in _PIXEL_VRS:
                self._enter(_FRAGMENTS, _NONE)
                self._fragments = 0
            else:
                self._enter(_SEQUENCE, _NONE)
                if self._explicit and (vr == b"UN" or vr not in KNOWN_VRS):
                    # Implicit VR little endian whatever surrounds it (PS3.5 section 6.2.2).
                    self._explicit, self._layout = False, _LITTLE
            return start
        self._within(self._base + start + length)
        if vr == b"SQ" or (not self._explicit and _is_sequence(tag)):
            self._enter(_SEQUENCE, self._base + start + length)
            return start
        return start + length

    def _item(self, container: _Container, tag: int, length: int, start: int) -> int:
        """An item of a sequence, a fragment, or the delimiter that ends them; the position after it."""
        if tag == ITEM:
            if length == UNDEFINED_LENGTH:
                if container.kind == _FRAGMENTS:
                    raise _malformed("a fragment has no length")
                self._push(_ITEM, _NONE)
                return start
            self._within(self._base + start + length)
            if container.kind == _FRAGMENTS:
                self._fragments += 1
                if self._elements > MAX_ELEMENTS:
                    raise InvalidInstance(RejectReason.TOO_LARGE, "too many fragments")
                return start + length
            self._push(_ITEM, self._base + start + length)
            return start
        if tag == SEQUENCE_DELIMITATION:
            if container.kind == _FRAGMENTS and len(self._open) == 1:
                self._pixels.encapsulated(self._fragments)
            if container.end == _NONE:
                self._pop()
            return start
        if tag == ITEM_DELIMITATION:
            return start
        raise _malformed("something else stands where an item must")

    def _delimiter(self, container: _Container | None, tag: int) -> None:
        """A delimiter between elements."""
        if container is None or tag not in (ITEM_DELIMITATION, SEQUENCE_DELIMITATION):
            raise _malformed("an item or delimiter stands where none may")
        if container.end == _NONE:
            self._pop()
            if tag == SEQUENCE_DELIMITATION and self._open and self._open[-1].end == _NONE:
                self._pop()  # the item's own delimiter is missing

    def _within(self, end: int) -> None:
        """Nothing reaches beyond the innermost container that says where it ends."""
        for container in reversed(self._open):
            if container.end != _NONE:
                if end > container.end:
                    raise _malformed("a length points beyond the sequence or item that it stands in")
                return

    def _close(self, position: int) -> None:
        """Leaves the containers that end here."""
        while self._open and self._open[-1].end != _NONE and position >= self._open[-1].end:
            if position > self._open[-1].end:
                raise _malformed("an element points beyond the sequence or item that it stands in")
            self._pop()

    def _enter(self, kind: int, end: int) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise InvalidInstance(RejectReason.TOO_DEEP, f"sequences are nested deeper than {MAX_DEPTH}")
        self._push(kind, end)

    def _push(self, kind: int, end: int) -> None:
        if self._elements > MAX_ELEMENTS:
            raise InvalidInstance(RejectReason.TOO_LARGE, "too many items")
        self._open.append(_Container(kind, end, self._explicit, self._layout))

    def _pop(self) -> None:
        kind, _, self._explicit, self._layout = self._open.pop()
        if kind != _ITEM:
            self._depth -= 1


@lru_cache(maxsize=8192)
def _is_sequence(tag: int) -> bool:
    return dictionary_vr(tag, None) == "SQ"


def _malformed(message: str) -> InvalidInstance:
    return InvalidInstance(RejectReason.MALFORMED, message)
