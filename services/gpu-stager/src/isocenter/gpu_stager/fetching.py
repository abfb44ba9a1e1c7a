"""Frames of sealed objects, in few requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from isocenter.common.dicom import uids
from isocenter.common.dicom.describe import describe
from isocenter.common.dicom.frames import FrameIndex, align_bits
from isocenter.common.dicom.inflate import InflatedReader, Read
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import IntegrityError, InvalidInstance, NotFound
from isocenter.common.index.manifest import ManifestEntry
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import Vault, VaultReader
from isocenter.gpu_stager.pixels.facts import PixelFacts

REQUEST_BYTES: Final = 8 << 20
"""The most that one read asks for: stores serve several of them side by side, and memory stays bounded."""
_GAP: Final = 64 << 10
"""Ranges closer than this are read as one: a request costs more than these bytes."""
_META_PIECE: Final = 4096
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Reads instances of studies.

    Args:
        vault: opens what is sealed.
        requests: at most so many reads at a time, over everything that is staged at the moment.
        inflated_bytes: the most that a deflated data set may inflate to.
    """

    vault: Vault
    requests: asyncio.Semaphore
    inflated_bytes: int = 4 << 30

    async def open(self, study_key: str, entry: ManifestEntry) -> InstanceReader:
        """Raises IntegrityError: the object is gone, or of another length than recorded; StoreUnavailable."""
        context = SealContext(study_key, entry.instance_key)
        try:
            async with self.requests:
                reader = await self.vault.reader(entry.object_key, context)
        except NotFound:
            raise IntegrityError(
                "the object of an indexed instance is missing", object_key=entry.object_key
            ) from None
        if reader.size != entry.size_bytes:
            raise IntegrityError("an object has another length than recorded", object_key=entry.object_key)
        return InstanceReader(reader, entry, self)


class InstanceReader:
    """Frames and bulk values of one instance."""

    def __init__(self, reader: VaultReader, entry: ManifestEntry, fetcher: Fetcher) -> None:
        self._reader = reader
        self._entry = entry
        self._fetcher = fetcher
        self._index = FrameIndex.unpack(entry.frames)
        self._inflated: Read | None = None

    async def frames(self, numbers: Sequence[int], pixels: PixelFacts) -> list[bytes]:
        """The bytes of frames, numbered from 1, ready for `pixels.decoding.decode`.

        Raises:
            IntegrityError: a range is not there.
            StoreUnavailable
        """
        index = self._index
        ranges = [index.ranges(number) for number in numbers]
        swapped = (
            self._entry.transfer_syntax_uid == BIG_ENDIAN
            and pixels.bits_allocated == 8
            and pixels.value_representation == "OW"
        )
        if swapped:  # bytes change places in pairs, which frames of odd length share
            ranges = [[self._whole_words(start, end) for start, end in each] for each in ranges]
        spans = await self._spans(_merged([pair for each in ranges for pair in each]))
        found = []
        for number, each in zip(numbers, ranges, strict=True):
            data = b"".join(_cut(spans, start, end) for start, end in each)
            if swapped:
                data = self._swapped(data, number)
            elif not index.encapsulated and index.frame_bits % 8:
                data = align_bits(data, index.bit_offset(number), index.frame_bits)
            found.append(data)
        return found

    async def bulk(self, path: str) -> bytes:
        """A value that the metadata refers to. Raises IntegrityError, StoreUnavailable."""
        description = await describe(self._reader.read, self._reader.size)
        name = path.removeprefix("bulkdata/")
        for found, start, end in description.bulk:
            if found == name:
                return await (await self._read())(start, end)
        raise IntegrityError("a bulk value is not there", object_key=self._entry.object_key)

    def _whole_words(self, start: int, end: int) -> tuple[int, int]:
        base = self._index.start
        return base + (start - base) // 2 * 2, base + (end - base + 1) // 2 * 2

    def _swapped(self, data: bytes, number: int) -> bytes:
        swapped = bytearray(data)
        swapped[::2], swapped[1::2] = data[1::2], data[::2]
        start, end = self._index.ranges(number)[0]
        skip = start - self._whole_words(start, end)[0]
        return bytes(swapped[skip : skip + end - start])

    async def _spans(self, spans: list[tuple[int, int]]) -> list[tuple[int, bytes]]:
        read = await self._read()

        async def piece(start: int, end: int) -> tuple[int, bytes]:
            async with self._fetcher.requests:
                data = await read(start, end)
            if len(data) != end - start:
                raise IntegrityError("a recorded range is not there", object_key=self._entry.object_key)
            return start, data

        pieces = [
            (position, min(end, position + REQUEST_BYTES))
            for start, end in spans
            for position in range(start, end, REQUEST_BYTES)
        ]
        if self._inflated is not None:  # can be read forwards only
            return _joined([await piece(*each) for each in pieces])
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(piece(*each)) for each in pieces]
        return _joined([task.result() for task in tasks])

    async def _read(self) -> Read:
        if not uids.is_deflated(self._entry.transfer_syntax_uid):
            return self._reader.read
        if self._inflated is None:
            splitter = Part10Splitter()
            position = 0
            while splitter.meta is None and position < self._reader.size:
                splitter.feed(await self._reader.read(position, position + _META_PIECE))
                position += _META_PIECE
            if splitter.meta is None:
                raise IntegrityError(
                    "an object has no file meta information", object_key=self._entry.object_key
                )
            inflating = InflatedReader(
                self._reader.read,
                splitter.meta.header_bytes,
                self._reader.size,
                limit=self._fetcher.inflated_bytes,
            )

            async def read(start: int, end: int) -> bytes:
                try:
                    return await inflating.read(start, end)
                except InvalidInstance:
                    raise IntegrityError(
                        "a data set does not inflate within the limit", object_key=self._entry.object_key
                    ) from None

            self._inflated = read
        return self._inflated


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fewer and longer, in ascending order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start - merged[-1][1] <= _GAP:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _joined(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Pieces that follow one another become one."""
    joined: list[tuple[int, list[bytes], int]] = []
    for start, data in sorted(pieces):
        if joined and joined[-1][2] == start:
            joined[-1][1].append(data)
            joined[-1] = (joined[-1][0], joined[-1][1], start + len(data))
        else:
            joined.append((start, [data], start + len(data)))
    return [(start, data[0] if len(data) == 1 else b"".join(data)) for start, data, _ in joined]


def _cut(spans: list[tuple[int, bytes]], start: int, end: int) -> bytes:
    for base, data in spans:
        if base <= start and end <= base + len(data):
            return data if len(data) == end - start else data[start - base : end - base]
    raise IntegrityError("a recorded range is not there")
