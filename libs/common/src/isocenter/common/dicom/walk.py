"""A walk through a whole data set that asks for the bytes it needs and skips the large ones.

A generator: it yields `Request`s and is sent bytes, so that it knows nothing of files, stores or event
loops. What cannot be read is left out and `complete` turns False; what was read before stays.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from isocenter.common.dicom.uids import is_big_endian, is_implicit
from isocenter.common.dicom.values import (
    BINARY_VRS,
    CONVERTERS,
    DEFAULT_ENCODINGS,
    BadValue,
    Convert,
    decode_text,
    dictionary_vr,
    element_json,
    text_encodings,
    unambiguous,
)
from isocenter.common.dicom.vr import (
    ITEM,
    ITEM_DELIMITATION,
    KNOWN_VRS,
    MAX_DEPTH,
    PIXEL_DATA,
    SEQUENCE_DELIMITATION,
    SHORT_LENGTH_VRS,
    UNDEFINED_LENGTH,
)

FLOAT_PIXEL_DATA: Final = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA: Final = 0x7FE00009
EXTENDED_OFFSET_TABLE: Final = 0x7FE00001
EXTENDED_OFFSET_TABLE_LENGTHS: Final = 0x7FE00002
_EXTENDED_TABLES: Final = frozenset({EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS})
PIXEL_TAGS: Final = frozenset({PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA})

FIRST_READ: Final = 16 << 10
"""A CT header is 2 to 5 KiB; one sealed chunk is 16 KiB."""
READ_AHEAD: Final = 256 << 10
_FRAGMENT_JUMP: Final = 4 << 10
_SMALL_FRAGMENT: Final = 128 << 10
_LARGE_SEQUENCE: Final = 64 << 10
_MAX_OFFSET_TABLE: Final = 64 << 20

_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_PIXEL_REPRESENTATION: Final = 0x00280103
_IDENTITY: Final = frozenset({0x00080016, 0x00080018, 0x0020000D, 0x0020000E})
"""What the acceptor reads: here, too, the first value counts, and it is a UID whatever VR it claims."""


class Request(NamedTuple):
    """Bytes [start, end) are wanted; fewer come only at the end of the data."""

    start: int
    end: int


Reads = Generator[Request, bytes, None]

_THOUGHT: Final = frozenset(
    {*_IDENTITY, *_EXTENDED_TABLES, *PIXEL_TAGS, _SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION}
)
"""Elements that mean more than their value."""
_PLAIN: Final[dict[bytes, tuple[str, Convert]]] = {
    vr.encode(): (vr, CONVERTERS[vr]) for vr in CONVERTERS if vr.encode() in SHORT_LENGTH_VRS
}


@lru_cache(maxsize=8192)
def _plain_by_tag(tag: int) -> tuple[str, Convert] | None:
    """For implicit VR: what the dictionary says of a standard element with one VR and a plain value."""
    vr = dictionary_vr(tag, None)
    convert = None if vr is None else CONVERTERS.get(vr)
    return None if vr is None or convert is None else (vr, convert)


@dataclass(frozen=True, slots=True)
class DescribeLimits:
    """Bounds on what describing one instance may cost.

    Attributes:
        header_bytes: bytes fetched for elements (fragment headers aside).
        elements: elements, items and fragments walked.
        value_bytes: a value longer than this is bulk data whatever its VR.
        bulk_threshold: OB, OD, OF, OL, OV, OW and UN values longer than this are bulk data.
        inflated_bytes: of a deflated data set.
    """

    header_bytes: int = 64 << 20
    elements: int = 1_000_000
    value_bytes: int = 1 << 20
    bulk_threshold: int = 1024
    inflated_bytes: int = 4 << 30


@dataclass(slots=True)
class PixelData:
    """Where (7FE0,0008), (7FE0,0009) or (7FE0,0010) lies.

    Attributes:
        start, end: of the value; without the sequence delimiter.
        starts, lengths: the fragments behind the Basic Offset Table, empty for native pixel data.
        offset_table: the Basic Offset Table's value.
    """

    tag: int
    start: int
    end: int
    encapsulated: bool
    big_endian: bool
    starts: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    offset_table: bytes = b""
    extended_offsets: bytes = b""
    extended_lengths: bytes = b""


class _Layout(NamedTuple):
    little: bool
    long: struct.Struct
    short: struct.Struct
    length: struct.Struct


_LITTLE: Final = _Layout(True, struct.Struct("<HHI"), struct.Struct("<HH2sH"), struct.Struct("<I"))
_BIG: Final = _Layout(False, struct.Struct(">HHI"), struct.Struct(">HH2sH"), struct.Struct(">I"))


class _Lost(Exception):
    """The walk has lost its ground."""


@dataclass(slots=True)
class _DataSet:
    """The data set of the object or of an item. `end` is None where a delimiter ends it."""

    end: int | None
    path: str
    explicit: bool
    layout: _Layout
    document: dict[str, Any]
    encodings: Sequence[str]
    signed: bool
    creators: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Sequence:
    end: int | None
    path: str
    start: int
    explicit: bool
    layout: _Layout
    items: list[dict[str, Any]]


@dataclass(slots=True)
class _Fragments:
    """Encapsulated pixel data. `pixel` is None for those inside sequences (icons): bulk data only."""

    end: None
    path: str
    start: int
    layout: _Layout
    count: int
    pixel: PixelData | None


class Walk:
    """One walk. Run `steps()` to its end, then read the attributes.

    Args:
        start: offset of the data set; all offsets count from there on in the same numbers.
        size: where the bytes end, None if unknown (deflated).
    """

    def __init__(
        self, transfer_syntax_uid: str, start: int, size: int | None, limits: DescribeLimits
    ) -> None:
        self.document: dict[str, Any] = {}
        self.bulk: list[tuple[str, int, int]] = []
        self.large: set[str] = set()
        """Top-level sequences of more than 64 KiB."""
        self.pixel: PixelData | None = None
        self.complete = True
        self._size = size
        self._limits = limits
        self._budget = limits.header_bytes
        self._elements = 0
        self._window = b""
        self._base = start
        self._position = start
        self._extended: dict[int, bytes] = {}
        layout = _BIG if is_big_endian(transfer_syntax_uid) else _LITTLE
        top = _DataSet(
            None, "", not is_implicit(transfer_syntax_uid), layout, self.document, DEFAULT_ENCODINGS, False
        )
        self._stack: list[_DataSet | _Sequence | _Fragments] = [top]

    def steps(self) -> Reads:
        yield from self._load(self._position, 8, FIRST_READ)
        while self._stack:
            try:
                self._plain_run()
                if not (yield from self._step()):
                    break
            except _Lost:
                self.complete = False
                if not self._resume():
                    break
        if self.pixel is not None:
            self.pixel.extended_offsets = self._extended.get(EXTENDED_OFFSET_TABLE, b"")
            self.pixel.extended_lengths = self._extended.get(EXTENDED_OFFSET_TABLE_LENGTHS, b"")

    def _plain_run(self) -> None:
        """Takes the plain elements that lie whole in the window, which is most of any header; stops at the
        first one that needs more thought. Does what `_step` would do for each of them, in one tight loop.
        """
        frame = self._stack[-1]
        if not isinstance(frame, _DataSet) or not self._elements:
            return
        window, explicit = self._window, frame.explicit
        offset = self._position - self._base
        end = next((each.end for each in reversed(self._stack) if each.end is not None), None)
        stop = len(window) if end is None else min(len(window), end - self._base)
        if offset < 0:
            return
        last, left = stop - 8, self._limits.elements - self._elements
        unpack = frame.layout.short.unpack_from if explicit else frame.layout.long.unpack_from
        longest, little = self._limits.value_bytes, frame.layout.little
        encodings, document = frame.encodings, frame.document
        begun = left
        while offset <= last and left > 0:
            if explicit:
                group, element, code, length = unpack(window, offset)
                plain = _PLAIN.get(code)
                tag = group << 16 | element
            else:
                group, element, length = unpack(window, offset)
                tag = group << 16 | element
                plain = None if group & 1 else _plain_by_tag(tag)
            start = offset + 8
            if (
                plain is None
                or not element
                or start + length > stop
                or length > longest
                or tag in _THOUGHT
                or (group & 1 and element <= 0xFF)  # private creators
            ):
                break
            offset, left = start + length, left - 1
            name, (vr, convert) = f"{tag:08X}", plain
            try:
                values = convert(window[start:offset], little, encodings)
            except BadValue:
                document.pop(name, None)
            else:
                document[name] = {"vr": vr, "Value": values} if values else {"vr": vr}
        self._elements += begun - left
        self._position = self._base + offset

    def _resume(self) -> bool:
        """Goes on after the outermost sequence or item whose length is known; False if there is none."""
        for depth, frame in enumerate(self._stack):
            if frame.end is not None and depth:
                self._position = frame.end
                del self._stack[depth:]
                return True
        return False

    def _step(self) -> Generator[Request, bytes, bool]:
        """One element, item or delimiter; False at the end of the data."""
        position = self._position
        frame = self._stack[-1]
        if frame.end is not None and position >= frame.end:
            if position > frame.end:
                raise _Lost
            self._pop(position)
            return True
        offset = position - self._base
        if offset < 0 or offset + 12 > len(self._window):
            # Behind a skipped value comes more of the header, or the next large value.
            ahead = READ_AHEAD if 0 <= offset <= len(self._window) else FIRST_READ
            if isinstance(frame, _Fragments):
                ahead = self._fragment_read_ahead(frame)
            yield from self._load(position, 12, ahead)
            offset = 0
        available = len(self._window) - offset
        if available < 8:
            if available or len(self._stack) > 1:
                raise _Lost
            return False
        self._elements += 1
        if self._elements > self._limits.elements:
            del self._stack[1:]
            raise _Lost
        group, element, length = frame.layout.long.unpack_from(self._window, offset)
        tag = group << 16 | element
        if isinstance(frame, _DataSet) and group != 0xFFFE:
            yield from self._element(frame, tag, length, offset, available)
        elif isinstance(frame, _Fragments):
            yield from self._fragment(frame, tag, length)
        else:
            self._item(frame, tag, length)
        return True

    def _element(self, frame: _DataSet, tag: int, length: int, offset: int, available: int) -> Reads:
        start = self._position + 8
        vr: str | None = None
        if self._elements == 1 and not frame.explicit:
            frame.explicit = frame.layout.short.unpack_from(self._window, offset)[2] in KNOWN_VRS
        if frame.explicit:
            _, _, code, short_length = frame.layout.short.unpack_from(self._window, offset)
            if code in SHORT_LENGTH_VRS:
                vr, length = code.decode(), short_length
            elif code.isalpha() and code.isupper():
                if available < 12:
                    raise _Lost
                vr = code.decode() if code in KNOWN_VRS else "UN"
                (length,) = frame.layout.length.unpack_from(self._window, offset + 8)
                start += 4
        declared = vr
        if vr is None or vr == "UN":
            creator = frame.creators.get(tag >> 8)
            found = dictionary_vr(tag, creator)
            vr = unambiguous(found, tag, signed=frame.signed) if found else "UN"
        if tag in _IDENTITY and len(self._stack) == 1:
            vr = "UI"
        path = f"{frame.path}{tag:08X}"
        if length == UNDEFINED_LENGTH:
            self._open(frame, tag, vr, path, start, declared)
        elif vr == "SQ":
            self._fits(start + length)
            self._open_sequence(frame, tag, path, start, start + length, implicit=declared == "UN")
            self._position = start
        else:
            yield from self._value(frame, tag, vr, path, start, length, un=declared == "UN")

    def _open(self, frame: _DataSet, tag: int, vr: str, path: str, start: int, declared: str | None) -> None:
        """A value of undefined length: fragments or a sequence."""
        if tag in PIXEL_TAGS or declared in {"OB", "OW"}:
            pixel = None
            if len(self._stack) == 1 and tag in PIXEL_TAGS:
                pixel = PixelData(tag, start, start, True, not frame.layout.little)
            # Fragments are OB, whatever the header says (PS3.5 annex A.4).
            frame.document[f"{tag:08X}"] = {"vr": "OB", "BulkDataURI": f"bulkdata/{path}"}
            self._push(_Fragments(None, path, start, frame.layout, 0, pixel))
        else:
            self._open_sequence(frame, tag, path, start, None, implicit=declared == "UN")
        self._position = start

    def _open_sequence(
        self, frame: _DataSet, tag: int, path: str, start: int, end: int | None, *, implicit: bool
    ) -> None:
        # UN holds implicit VR little endian whatever surrounds it (PS3.5 section 6.2.2).
        explicit, layout = (False, _LITTLE) if implicit else (frame.explicit, frame.layout)
        items: list[dict[str, Any]] = []
        frame.document[f"{tag:08X}"] = {"vr": "SQ", "Value": items} if end != start else {"vr": "SQ"}
        self._push(_Sequence(end, path, start, explicit, layout, items))

    def _push(self, frame: _DataSet | _Sequence | _Fragments) -> None:
        if len(self._stack) > 2 * MAX_DEPTH:
            raise _Lost
        self._stack.append(frame)

    def _pop(self, position: int) -> None:
        frame = self._stack.pop()
        if isinstance(frame, _Sequence):
            is_large = position - frame.start > _LARGE_SEQUENCE
            if is_large and len(self._stack) == 1:
                self.large.add(frame.path)
        elif isinstance(frame, _Fragments):
            self.bulk.append((frame.path, frame.start, position))
            if frame.pixel is not None:
                frame.pixel.end = position
                self.pixel = frame.pixel

    def _item(self, frame: _DataSet | _Sequence, tag: int, length: int) -> None:
        start = self._position + 8
        if isinstance(frame, _Sequence) and tag == ITEM:
            end = None if length == UNDEFINED_LENGTH else start + length
            if end is not None:
                self._fits(end)
            parent = self._stack[-2]
            if not isinstance(parent, _DataSet):
                raise _Lost
            document: dict[str, Any] = {}
            path = f"{frame.path}/{len(frame.items)}/"
            frame.items.append(document)
            self._push(
                _DataSet(end, path, frame.explicit, frame.layout, document, parent.encodings, parent.signed)
            )
        elif tag == ITEM_DELIMITATION and isinstance(frame, _DataSet) and len(self._stack) > 1:
            self._pop(self._position)
        elif tag == SEQUENCE_DELIMITATION and len(self._stack) > 1:
            if isinstance(frame, _DataSet):
                self._pop(self._position)
            self._pop(self._position)
        else:
            raise _Lost
        self._position = start

    def _fragment(self, frame: _Fragments, tag: int, length: int) -> Reads:
        start = self._position + 8
        if tag == SEQUENCE_DELIMITATION:
            self._pop(self._position)
            self._position = start
            return
        if tag != ITEM or length == UNDEFINED_LENGTH:
            raise _Lost
        yield from self._reaches(start + length)
        if frame.pixel is not None:
            if frame.count:
                frame.pixel.starts.append(start)
                frame.pixel.lengths.append(length)
            elif 0 < length <= _MAX_OFFSET_TABLE:
                frame.pixel.offset_table = yield from self._bytes(start, length)
        frame.count += 1
        self._position = start + length

    def _fragment_read_ahead(self, frame: _Fragments) -> int:
        """Small fragments come many to a read; large ones are jumped over."""
        lengths = frame.pixel.lengths if frame.pixel else None
        return READ_AHEAD if lengths and lengths[-1] < _SMALL_FRAGMENT else _FRAGMENT_JUMP

    def _value(
        self, frame: _DataSet, tag: int, vr: str, path: str, start: int, length: int, *, un: bool
    ) -> Reads:
        end = start + length
        self._fits(end)
        self._position = end
        top = len(self._stack) == 1
        name = f"{tag:08X}"
        if top and tag in _IDENTITY and name in frame.document:
            return
        if top and tag in _EXTENDED_TABLES and length <= _MAX_OFFSET_TABLE:
            self._extended[tag] = yield from self._bytes(start, length)
        is_bulk = length > self._limits.value_bytes or (
            vr in BINARY_VRS and length > self._limits.bulk_threshold
        )
        if tag in PIXEL_TAGS or is_bulk:
            yield from self._reaches(end)
            frame.document[name] = {"vr": vr, "BulkDataURI": f"bulkdata/{path}"}
            self.bulk.append((path, start, end))
            if top and tag in PIXEL_TAGS:
                self.pixel = PixelData(tag, start, end, False, not frame.layout.little)
            return
        raw = yield from self._bytes(start, length)
        if tag & 0xFFFF == 0:
            return  # group lengths have no place in DICOM JSON (PS3.18 F.2.2)
        little = frame.layout.little or un
        if tag == _SPECIFIC_CHARACTER_SET:
            frame.encodings = text_encodings(raw)
            # The document is UTF-8 from here on (PS3.18 F.2).
            frame.document[name] = {"vr": "CS", "Value": ["ISO_IR 192"]}
            return
        if tag == _PIXEL_REPRESENTATION and len(raw) >= 2:
            frame.signed = any(raw[:2])
        elif tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            block = tag >> 16 << 8 | tag & 0xFF
            frame.creators[block] = decode_text(raw, frame.encodings).strip(" \0")
        try:
            frame.document[name] = element_json(vr, raw, little=little, encodings=frame.encodings)
        except BadValue:
            frame.document.pop(name, None)

    def _fits(self, end: int) -> None:
        """Raises _Lost if a length runs past the enclosing item or sequence, or past the end."""
        for frame in reversed(self._stack):
            if frame.end is not None:
                if end > frame.end:
                    raise _Lost
                return
        if self._size is not None and end > self._size:
            raise _Lost

    def _reaches(self, end: int) -> Reads:
        """Raises _Lost if the bytes end before `end`."""
        if self._size is not None:
            if end > self._size:
                raise _Lost
        elif end > self._base + len(self._window):
            last = yield Request(end - 1, end)
            if not last:
                raise _Lost

    def _bytes(self, start: int, length: int) -> Generator[Request, bytes, bytes]:
        offset = start - self._base
        if offset < 0 or offset + length > len(self._window):
            yield from self._load(start, length, READ_AHEAD)
            offset = 0
        raw = self._window[offset : offset + length]
        if len(raw) < length:
            raise _Lost
        return raw

    def _load(self, position: int, size: int, ahead: int) -> Reads:
        wanted = max(size, ahead)
        end = position + wanted if self._size is None else min(position + wanted, self._size)
        if not isinstance(self._stack[-1], _Fragments):
            self._budget -= end - position
            if self._budget < 0:
                del self._stack[1:]
                raise _Lost
        self._window = (yield Request(position, end)) if end > position else b""
        self._base = position
