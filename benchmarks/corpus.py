"""Synthetic instances with raw data set bytes: cheap to make, different in every byte range that matters.

Pixel bytes are cut from one seeded random pool at an offset that moves with each instance, so no two
instances share content and the sender needs no memory for the corpus.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.dimse import DataSet

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_WORD = "1.2.840.10008.5.1.4.1.1.7.3"
_POOL_BYTES = 8 << 20
_LONG_VRS = {b"OB", b"OW", b"SQ", b"UN", b"UT"}


@dataclass(frozen=True, slots=True)
class Corpus:
    """What to send. `frames` above 1 makes Multi-frame Grayscale Word Secondary Capture, else CT Image.

    `per_request`: instances in one STOW-RS request; 0 sends over C-STORE.
    """

    name: str
    instances: int
    rows: int
    columns: int
    frames: int = 1
    per_request: int = 0

    @property
    def sop_class_uid(self) -> str:
        return CT_IMAGE if self.frames == 1 else MULTI_FRAME_WORD

    @property
    def pixel_bytes(self) -> int:
        return self.rows * self.columns * 2 * self.frames


FULL = (
    Corpus("ct", 1000, 512, 512),
    Corpus("small", 5000, 100, 100),
    Corpus("large", 5, 512, 512, frames=400),
    Corpus("stow_ct", 1000, 512, 512, per_request=20),
    Corpus("stow_small", 5000, 100, 100, per_request=100),
)
QUICK = (
    Corpus("ct", 24, 512, 512),
    Corpus("small", 60, 100, 100),
    Corpus("large", 2, 512, 512, frames=40),
    Corpus("stow_ct", 24, 512, 512, per_request=4),
    Corpus("stow_small", 60, 100, 100, per_request=10),
)


class Generator:
    """Makes the instances of one run. The same seed makes the same UIDs and bytes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pool = memoryview(self._random.randbytes(_POOL_BYTES))
        self._root = f"2.25.{self._random.getrandbits(96)}"

    def study(
        self, corpus: Corpus, study: int, count: int, *, start: int = 0, patient: str = "BENCH"
    ) -> Iterator[DataSet]:
        """Instances start .. start + count - 1 of one study with one series."""
        for number in range(start, start + count):
            yield self.instance(corpus, study, number, patient=patient)

    def digest(self, corpus: Corpus, shares: Sequence[Corpus]) -> str:
        """SHA-256 over the pool, every header, and where each instance's pixels are cut from the pool.

        Equal digests mean equal bytes, at a small part of the cost of hashing them.
        """
        found = hashlib.sha256(self._pool)
        for study, share in enumerate(shares, start=1):
            for number in range(share.instances):
                header = _header(
                    corpus, self.study_uid(study), f"{self.study_uid(study)}.1.{number + 1}", number
                )
                found.update(header + struct.pack("<QQ", _offset(study, number), corpus.pixel_bytes))
        return found.hexdigest()

    def study_uid(self, study: int) -> str:
        return f"{self._root}.{study}"

    def instance(self, corpus: Corpus, study: int, number: int, *, patient: str = "BENCH") -> DataSet:
        study_uid = self.study_uid(study)
        sop_uid = f"{study_uid}.1.{number + 1}"
        header = _header(corpus, study_uid, sop_uid, number, patient)
        pixels = self._pixels(corpus.pixel_bytes, _offset(study, number))
        return DataSet(corpus.sop_class_uid, sop_uid, (header, *pixels))

    def _pixels(self, size: int, offset: int) -> list[memoryview]:
        start = offset % _POOL_BYTES
        parts: list[memoryview] = []
        while size:
            part = self._pool[start : start + size]
            parts.append(part)
            size -= len(part)
            start = 0
        return parts


def _offset(study: int, number: int) -> int:
    """Where in the pool the pixels of an instance begin, before it is wrapped round."""
    return (study * 7919 + number * 104729) * 2


def _header(corpus: Corpus, study_uid: str, sop_uid: str, number: int, patient: str = "BENCH") -> bytes:
    fields: list[tuple[int, int, bytes, bytes]] = [
        (0x0008, 0x0016, b"UI", corpus.sop_class_uid.encode()),
        (0x0008, 0x0018, b"UI", sop_uid.encode()),
        (0x0008, 0x0020, b"DA", b"20260102"),
        (0x0008, 0x0030, b"TM", b"030405"),
        (0x0008, 0x0050, b"SH", b"A1"),
        (0x0008, 0x0060, b"CS", b"CT" if corpus.frames == 1 else b"OT"),
        (0x0008, 0x0090, b"PN", b""),
        (0x0010, 0x0010, b"PN", patient.encode() + b"^SYNTHETIC"),
        (0x0010, 0x0020, b"LO", patient.encode()),
        (0x0010, 0x0030, b"DA", b""),
        (0x0010, 0x0040, b"CS", b"O"),
        (0x0020, 0x000D, b"UI", study_uid.encode()),
        (0x0020, 0x000E, b"UI", f"{study_uid}.1".encode()),
        (0x0020, 0x0010, b"SH", b"1"),
        (0x0020, 0x0011, b"IS", b"1"),
        (0x0020, 0x0013, b"IS", str(number + 1).encode()),
        (0x0028, 0x0002, b"US", struct.pack("<H", 1)),
        (0x0028, 0x0004, b"CS", b"MONOCHROME2"),
    ]
    if corpus.frames > 1:
        fields.append((0x0028, 0x0008, b"IS", str(corpus.frames).encode()))
    fields += [
        (0x0028, 0x0010, b"US", struct.pack("<H", corpus.rows)),
        (0x0028, 0x0011, b"US", struct.pack("<H", corpus.columns)),
        (0x0028, 0x0100, b"US", struct.pack("<H", 16)),
        (0x0028, 0x0101, b"US", struct.pack("<H", 16)),
        (0x0028, 0x0102, b"US", struct.pack("<H", 15)),
        (0x0028, 0x0103, b"US", struct.pack("<H", 0)),
    ]
    elements = b"".join(_element(*field) for field in fields)
    return elements + struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OW", corpus.pixel_bytes)


def _element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """Explicit VR Little Endian (PS3.5 section 7.1.2)."""
    if len(value) % 2:
        value += b"\0" if vr in {b"UI", b"OB", b"UN"} else b" "
    if vr in _LONG_VRS:
        return struct.pack("<HH2s2xL", group, number, vr, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value
