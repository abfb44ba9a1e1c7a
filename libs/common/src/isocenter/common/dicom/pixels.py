"""How much pixel data a data set promises (PS3.3 section C.7.6.3), held against what it brings."""

from __future__ import annotations

import struct
from typing import Final

from isocenter.common.dicom.uids import is_encapsulated, is_native
from isocenter.common.dicom.vr import PIXEL_DATA, UNDEFINED_LENGTH
from isocenter.common.errors import InvalidInstance, RejectReason

FLOAT_PIXEL_DATA: Final = 0x7FE00008
DOUBLE_FLOAT_PIXEL_DATA: Final = 0x7FE00009
PIXEL_ELEMENTS: Final = frozenset((FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA, PIXEL_DATA))

_SAMPLES: Final = 0x00280002
_PHOTOMETRIC: Final = 0x00280004
_FRAMES: Final = 0x00280008
_ROWS: Final = 0x00280010
_COLUMNS: Final = 0x00280011
_BITS: Final = 0x00280100
_WANTED: Final = frozenset((_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS))
PIXEL_FACTS: Final = frozenset(tag & 0xFFFF for tag in _WANTED)
"""Elements of group 0028 that `PixelFacts` takes."""
_MAX_VALUE: Final = 64
_FIXED_BITS: Final = {FLOAT_PIXEL_DATA: 32, DOUBLE_FLOAT_PIXEL_DATA: 64}
# Chrominance is stored once for several pixels (PS3.3 section C.7.6.3.1.2): sixths of the samples.
_SUBSAMPLED: Final = {b"YBR_FULL_422": 4, b"YBR_PARTIAL_422": 4, b"YBR_PARTIAL_420": 3}
# Several frames in one fragment: JPEG 2000 part 2 with components across frames, and video.
_FRAMES_SHARE: Final = ("1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93", "1.2.840.10008.1.2.4.10")


class PixelFacts:
    """What group 0028 says, collected while a data set is walked. What is absent proves nothing."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._native = is_native(transfer_syntax_uid)
        self._frame_by_frame = is_encapsulated(transfer_syntax_uid) and not transfer_syntax_uid.startswith(
            _FRAMES_SHARE
        )
        self._numbers: dict[int, int] = {}
        self._sixths = 6

    def wants(self, tag: int, length: int) -> bool:
        """The value is needed as a whole."""
        return tag in _WANTED and length <= _MAX_VALUE

    def take(
        self,
        tag: int,
        length: int,
        data: bytes | bytearray | memoryview,
        start: int,
        *,
        big_endian: bool,
    ) -> None:
        """An element of the data set itself, not of an item. Raises InvalidInstance: PIXEL_MISMATCH."""
        if tag in PIXEL_ELEMENTS:
            self._native_pixels(tag, length)
        elif not self.wants(tag, length):
            return
        elif tag == _PHOTOMETRIC:
            self._sixths = _SUBSAMPLED.get(bytes(data[start : start + length]).strip(b" \0"), 6)
        elif tag == _FRAMES:
            text = bytes(data[start : start + length]).strip(b" \0")
            # Python's own limit on digits is above the 64 bytes that come here.
            self._numbers[tag] = int(text) if text.isdigit() else 1
        elif length == 2:
            (self._numbers[tag],) = struct.unpack_from(">H" if big_endian else "<H", data, start)

    def encapsulated(self, items: int) -> None:
        """Encapsulated pixel data ended after so many items, the offset table included. Raises as `take`."""
        frames = self._numbers.get(_FRAMES, 1)
        if self._frame_by_frame and frames > 1 and items > 1 and frames > items - 1:
            raise _mismatch()

    def _native_pixels(self, tag: int, length: int) -> None:
        if not self._native or length in (0, UNDEFINED_LENGTH):
            return
        numbers = self._numbers
        bits = _FIXED_BITS.get(tag) or numbers.get(_BITS, 0)
        samples = numbers.get(_SAMPLES, 1) * max(1, numbers.get(_FRAMES, 1))
        promised = numbers.get(_ROWS, 0) * numbers.get(_COLUMNS, 0) * samples * bits * self._sixths
        if promised > length * 8 * 6:
            raise _mismatch()


def _mismatch() -> InvalidInstance:
    return InvalidInstance(RejectReason.PIXEL_MISMATCH, "the attributes promise more pixels than there are")
