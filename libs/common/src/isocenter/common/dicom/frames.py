"""Where each frame's bytes lie: arithmetic for native pixel data, a list of fragments for encapsulated."""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Final

from isocenter.common.dicom.walk import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PixelData
from isocenter.common.errors import IntegrityError, NotFound

# Version, flags, number of frames, number of fragments, start of the first frame, bits of a native frame.
_HEAD: Final = struct.Struct("<BBIIQQ")
_VERSION: Final = 1
_ENCAPSULATED: Final = 1
_INFLATED: Final = 2
_ONE_FRAGMENT_EACH: Final = 4
_CONTIGUOUS: Final = 8
_MAX_PACKED_BYTES: Final = 256 << 20
_ITEM_HEADER: Final = 8
_END_OF_IMAGE: Final = b"\xff\xd9"
FRAGMENT_TAIL: Final = 10
"""Bytes at a fragment's end in which a JPEG end-of-image marker may stand (padding follows it)."""


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Byte ranges of frames. Offsets count in the Part 10 object's plaintext.

    Attributes:
        number_of_frames: at least 1.
        start: offset of the first frame.
        frame_bits: length of one native frame; 0 for encapsulated pixel data.
        inflated: the transfer syntax is deflated, and offsets count in preamble and file meta information
            followed by the *inflated* data set.
        starts, lengths: fragments, in order.
        first: index of each frame's first fragment, and the number of fragments at the end.
    """

    number_of_frames: int
    start: int
    frame_bits: int = 0
    inflated: bool = False
    starts: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    first: array[int] = field(default_factory=lambda: array("I"))

    @property
    def encapsulated(self) -> bool:
        return self.frame_bits == 0

    def ranges(self, frame_number: int) -> list[tuple[int, int]]:
        """[start, end) of the pieces whose concatenation is the frame, numbered from 1.

        A native frame whose bits do not fill whole bytes shares its first and last byte with its neighbours:
        see `bit_offset` and `align_bits`.

        Raises:
            NotFound: there is no such frame.
        """
        if not 1 <= frame_number <= self.number_of_frames:
            raise NotFound("no such frame", frame=frame_number)
        if self.encapsulated:
            fragments = range(self.first[frame_number - 1], self.first[frame_number])
            return [(self.starts[i], self.starts[i] + self.lengths[i]) for i in fragments]
        first_bit = (frame_number - 1) * self.frame_bits
        last_bit = first_bit + self.frame_bits
        return [(self.start + first_bit // 8, self.start + (last_bit + 7) // 8)]

    def bit_offset(self, frame_number: int) -> int:
        """Low-order bits of the range's first byte that belong to the frame before; 0 unless single-bit."""
        return (frame_number - 1) * self.frame_bits % 8

    def pack(self) -> bytes:
        """About 2 to 4 bytes for each fragment, 27 bytes for native pixel data."""
        flags = _INFLATED * self.inflated | _ENCAPSULATED * self.encapsulated
        columns = b""
        if self.encapsulated:
            one_each = len(self.starts) == self.number_of_frames
            contiguous = all(
                start + length + _ITEM_HEADER == following
                for (start, following), length in zip(pairwise(self.starts), self.lengths, strict=False)
            )
            flags |= _ONE_FRAGMENT_EACH * one_each | _CONTIGUOUS * contiguous
            columns = _little(self.lengths)
            if not contiguous:
                columns += _little(self.starts)
            if not one_each:
                columns += _little(self.first)
        head = _HEAD.pack(
            _VERSION, flags, self.number_of_frames, len(self.starts), self.start, self.frame_bits
        )
        return head + (zlib.compress(columns, 6) if columns else b"")

    @classmethod
    def unpack(cls, packed: bytes) -> FrameIndex:
        """Raises IntegrityError if the bytes were not made by `pack`."""
        try:
            return cls._unpack(packed)
        except (struct.error, zlib.error, ValueError):
            raise IntegrityError("frame index cannot be read") from None

    @classmethod
    def _unpack(cls, packed: bytes) -> FrameIndex:
        version, flags, number_of_frames, fragments, start, frame_bits = _HEAD.unpack_from(packed)
        if version != _VERSION or bool(flags & _ENCAPSULATED) != (frame_bits == 0):
            raise ValueError
        inflated = bool(flags & _INFLATED)
        if not flags & _ENCAPSULATED:
            return cls(number_of_frames, start, frame_bits, inflated)
        contiguous, one_each = flags & _CONTIGUOUS, flags & _ONE_FRAGMENT_EACH
        columns = _inflate(packed[_HEAD.size :])
        expected = 8 * fragments * (1 if contiguous else 2) + (0 if one_each else 4 * (number_of_frames + 1))
        if len(columns) != expected:
            raise ValueError
        lengths = _from_little("Q", columns[: 8 * fragments])
        rest = columns[8 * fragments :]
        if contiguous:
            steps = (length + _ITEM_HEADER for length in lengths[:-1])
            starts = array("Q", accumulate(steps, initial=start))
        else:
            starts = _from_little("Q", rest[: 8 * fragments])
            rest = rest[8 * fragments :]
        first = array("I", range(fragments + 1)) if one_each else _from_little("I", rest)
        if (
            len(first) != number_of_frames + 1
            or any(a > b for a, b in pairwise(first))
            or first[-1] > fragments
        ):
            raise ValueError
        return cls(number_of_frames, start, 0, inflated, starts, lengths, first)


def align_bits(data: bytes, bit_offset: int, bits: int) -> bytes:
    """`bits` bits of `data` from `bit_offset` on, moved to the first byte's lowest bit; the last byte is
    zero-filled.

    Single-bit pixels fill bytes from the lowest bit (PS3.5 section 8.1.1).
    """
    number = int.from_bytes(data, "little") >> bit_offset & (1 << bits) - 1
    return number.to_bytes((bits + 7) // 8, "little")


def needs_fragment_tails(document: dict[str, Any], pixel: PixelData) -> bool:
    """Only end-of-image markers can tell frames apart: no offset table, several fragments a frame."""
    frames = number_of_frames(document)
    return (
        pixel.encapsulated
        and not pixel.offset_table
        and not pixel.extended_offsets
        and 1 < frames < len(pixel.starts)
    )


def index_frames(
    document: dict[str, Any], pixel: PixelData, *, inflated: bool, tails: Sequence[bytes] = ()
) -> FrameIndex | None:
    """The frame index, or None where frame boundaries cannot be known.

    Args:
        document: DICOM JSON with the Image Pixel module.
        pixel: where the pixel data lies.
        inflated: its offsets count in an inflated data set.
        tails: the last bytes of each fragment, where `needs_fragment_tails` says so.
    """
    if not pixel.encapsulated:
        return _native(document, pixel, inflated=inflated)
    first = (
        _by_extended_offset_table(document, pixel)
        or _by_basic_offset_table(document, pixel)
        or _without_offset_table(document, pixel, tails)
    )
    if first is None:
        return None
    return FrameIndex(len(first) - 1, pixel.starts[0], 0, inflated, pixel.starts, pixel.lengths, first)


def number_of_frames(document: dict[str, Any]) -> int:
    """(0028,0008), and 1 where it is absent or nonsense."""
    return max(1, _integer(document, "00280008") or 1)


def _native(document: dict[str, Any], pixel: PixelData, *, inflated: bool) -> FrameIndex | None:
    rows, columns = _integer(document, "00280010"), _integer(document, "00280011")
    samples = _integer(document, "00280002") or 1
    allocated = {FLOAT_PIXEL_DATA: 32, DOUBLE_FLOAT_PIXEL_DATA: 64}.get(pixel.tag)
    bits = allocated or _integer(document, "00280100")
    if not rows or not columns or not bits:
        return None
    frame_bits = rows * columns * samples * bits
    photometric = _first(document, "00280004")
    if photometric in {"YBR_FULL_422", "YBR_PARTIAL_422"} and samples == 3:
        # Two luminance samples share their chrominance (PS3.3 C.7.6.3.1.2).
        frame_bits = frame_bits // 3 * 2
    elif photometric == "YBR_PARTIAL_420" and samples == 3:
        frame_bits //= 2
    frames = number_of_frames(document)
    if not 0 < frame_bits < 1 << 63 or frames >= 1 << 32:
        return None
    if (frame_bits * frames + 7) // 8 > pixel.end - pixel.start:
        return None
    return FrameIndex(frames, pixel.start, frame_bits, inflated)


def _by_extended_offset_table(document: dict[str, Any], pixel: PixelData) -> array[int] | None:
    """One fragment for each frame (PS3.3 C.7.6.3.1.8). None unless the table agrees with the fragments."""
    if not pixel.extended_offsets or not pixel.starts:
        return None
    offsets = _offsets(pixel.extended_offsets, "Q", pixel)
    lengths = _offsets(pixel.extended_lengths, "Q", pixel)
    base = pixel.starts[0] - _ITEM_HEADER
    agrees = (
        len(offsets) == len(lengths) == len(pixel.starts) == number_of_frames(document)
        and all(base + o + _ITEM_HEADER == s for o, s in zip(offsets, pixel.starts, strict=True))
        # A length in the table leaves the padding out.
        and all(length - 1 <= have <= length for have, length in zip(lengths, pixel.lengths, strict=True))
    )
    if not agrees:
        return None
    pixel.lengths = lengths
    return array("I", range(len(offsets) + 1))


def _by_basic_offset_table(document: dict[str, Any], pixel: PixelData) -> array[int] | None:
    """None unless the table names the start of a fragment for every frame, in order."""
    if not pixel.offset_table or not pixel.starts or len(pixel.offset_table) % 4:
        return None
    offsets = _offsets(pixel.offset_table, "I", pixel)
    if len(offsets) != number_of_frames(document) or offsets[0] != 0:
        return None
    fragment_at = {start: index for index, start in enumerate(pixel.starts)}
    first = array("I")
    for offset in offsets:
        index = fragment_at.get(pixel.starts[0] + offset)
        if index is None or (first and index <= first[-1]):
            return None
        first.append(index)
    first.append(len(pixel.starts))
    return first


def _without_offset_table(
    document: dict[str, Any], pixel: PixelData, tails: Sequence[bytes]
) -> array[int] | None:
    frames, fragments = number_of_frames(document), len(pixel.starts)
    if not fragments:
        return None
    if fragments == frames:
        return array("I", range(fragments + 1))
    if frames == 1:
        return array("I", (0, fragments))
    if len(tails) != fragments:
        return None
    ends = [index + 1 for index, tail in enumerate(tails) if _END_OF_IMAGE in tail]
    # Markers inside the compressed data, or lost ones, would move every later frame: then nothing is claimed.
    if len(ends) != frames or ends[-1] != fragments:
        return None
    return array("I", (0, *ends))


def _offsets(table: bytes, code: str, pixel: PixelData) -> array[int]:
    offsets = array(code)
    offsets.frombytes(table[: len(table) // offsets.itemsize * offsets.itemsize])
    if pixel.big_endian != (sys.byteorder == "big"):
        offsets.byteswap()
    return offsets


def _first(document: dict[str, Any], name: str) -> Any:
    values = document.get(name, {}).get("Value")
    return values[0] if values else None


def _integer(document: dict[str, Any], name: str) -> int | None:
    value = _first(document, name)
    return value if isinstance(value, int) else None


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _from_little(code: str, data: bytes) -> array[int]:
    column = array(code)
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _inflate(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    columns = inflate.decompress(data, _MAX_PACKED_BYTES)
    if not inflate.eof:
        raise ValueError
    return columns
