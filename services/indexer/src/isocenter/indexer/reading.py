"""From a stored object to its `InstanceRecord`. Live indexing and rebuild both come through here, so that
they agree: everything in a record comes from the object and its metadata, nothing from the event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from isocenter.common.dicom import metadata as dicom_metadata
from isocenter.common.dicom.bounded import Parsed, ParserPool, Source
from isocenter.common.dicom.describe import BEGINNING, describe
from isocenter.common.dicom.header import HeaderScanner, InstanceHeader
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import (
    IntegrityError,
    InvalidInstance,
    IsocenterError,
    RejectReason,
)
from isocenter.common.index import attributes as kept
from isocenter.common.index.records import DicomJson, InstanceRecord
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.ports import ObjectInfo
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import Vault, VaultReader

_PIECE = 64 << 10
_BATCH = 25
"""Instances whose headers are parsed together: some milliseconds of one core."""
_BATCHES = 3
"""One is being read from the store while another is parsed and a third becomes records."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An object that could not become a record, and why. Its bytes are kept."""

    object_key: str
    error: IsocenterError


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads many objects at a time, and parses their headers in batches.

    Attributes:
        concurrency: objects that are being read from the store.
        parsers: where headers are parsed; without them, here.
    """

    vault: Vault
    keys: SiteKeys
    concurrency: int = 8
    parsers: ParserPool | None = None

    async def read_all(
        self, study_key: str, object_keys: Sequence[str]
    ) -> tuple[list[InstanceRecord], list[Unreadable]]:
        """Records in the order asked for. A fault of one object does not touch the others.

        Raises:
            Transient: nothing can be parsed at all.
        """
        outcomes = await self.read_each([(study_key, key) for key in dict.fromkeys(object_keys)])
        return (
            [outcome for outcome in outcomes if isinstance(outcome, InstanceRecord)],
            [outcome for outcome in outcomes if isinstance(outcome, Unreadable)],
        )

    async def read_each(self, objects: Sequence[tuple[str, str]]) -> list[InstanceRecord | Unreadable]:
        """One outcome for each pair of study key and object key, as `read` has it.

        Raises:
            Transient: nothing can be parsed at all.
        """
        reads, batches = asyncio.Semaphore(self.concurrency), asyncio.Semaphore(_BATCHES)

        async def batch(some: Sequence[tuple[str, str]]) -> list[InstanceRecord | Unreadable]:
            async with batches:
                return await self._read_batch(some, reads)

        found = await asyncio.gather(
            *(batch(objects[start : start + _BATCH]) for start in range(0, len(objects), _BATCH))
        )
        return [outcome for each in found for outcome in each]

    async def read(self, study_key: str, object_key: str) -> InstanceRecord:
        """Reads the header and the item structure of pixel data, never the pixels.

        Raises:
            NotFound, StoreUnavailable
            IntegrityError: the object is sealed for, or holds, another study than `study_key`.
            InvalidInstance: not even the UIDs can be read.
        """
        opened = await self._open(study_key, object_key)
        (parsed,) = await self._parse([opened])
        return await self._record(study_key, opened, parsed)

    async def _read_batch(
        self, objects: Sequence[tuple[str, str]], gate: asyncio.Semaphore
    ) -> list[InstanceRecord | Unreadable]:
        async def open_one(study_key: str, object_key: str) -> _Opened | Unreadable:
            async with gate:
                try:
                    return await self._open(study_key, object_key)
                except IsocenterError as error:
                    return Unreadable(object_key, error)

        opened = await asyncio.gather(*(open_one(*each) for each in objects))
        sound = [each for each in opened if isinstance(each, _Opened)]
        parsed = iter(await self._parse(sound))
        outcomes: list[InstanceRecord | Unreadable] = []
        for (study_key, object_key), each in zip(objects, opened, strict=True):
            if isinstance(each, Unreadable):
                outcomes.append(each)
                continue
            try:
                outcomes.append(await self._record(study_key, each, next(parsed)))
            except IsocenterError as error:
                outcomes.append(Unreadable(object_key, error))
        return outcomes

    async def _open(self, study_key: str, object_key: str) -> _Opened:
        info = await self.vault.store.head(object_key)
        reader = self.vault.reader_of(info, SealContext(study_key, info.metadata.get("instance_key", "")))
        return _Opened(reader, await reader.read(0, BEGINNING) if self.parsers is not None else b"")

    async def _parse(self, opened: Sequence[_Opened]) -> Sequence[Parsed | IsocenterError]:
        if self.parsers is not None and opened:
            return await self.parsers.describe(
                [Source(each.reader.size, each.beginning, each.reader.read) for each in opened]
            )
        return [await _parse_here(each.reader) for each in opened]

    async def _record(
        self, study_key: str, opened: _Opened, parsed: Parsed | IsocenterError
    ) -> InstanceRecord:
        reader = opened.reader
        info = reader.info
        if isinstance(parsed, InvalidInstance):
            # The acceptor took it, so its UIDs can be read: it is found by them and retrieved whole.
            parsed = await _parse_minimally(reader)
        if isinstance(parsed, IsocenterError):
            raise parsed
        header, object_key = parsed.header, info.key
        instance_key = self.keys.instance_key(header.sop_instance_uid)
        if self.keys.study_key(header.study_instance_uid) != study_key:
            raise IntegrityError("object belongs to another study", object_key=object_key)
        if info.metadata.get("instance_key", instance_key) != instance_key:
            raise IntegrityError("object belongs to another instance", object_key=object_key)
        return InstanceRecord(
            study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            transfer_syntax_uid=parsed.transfer_syntax_uid,
            study_key=study_key,
            series_key=self.keys.series_key(header.series_instance_uid),
            instance_key=instance_key,
            object_key=object_key,
            content_digest=info.metadata.get("content_digest", ""),
            size_bytes=reader.size,
            received_at=_received_at(info),
            sender=info.metadata.get("sender", ""),
            attributes=kept.select(parsed.attributes),
            metadata=parsed.metadata,
            frames=parsed.frames,
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    reader: VaultReader
    beginning: bytes


async def _parse_here(reader: VaultReader) -> Parsed | IsocenterError:
    try:
        found = await describe(reader.read, reader.size)
    except IsocenterError as error:
        return error
    frames = found.frames.pack() if found.frames else b""
    return Parsed(found.header, found.transfer_syntax_uid, found.attributes, found.metadata, frames)


async def _parse_minimally(reader: VaultReader) -> Parsed:
    splitter = Part10Splitter()
    scanner: HeaderScanner | None = None
    header: InstanceHeader | None = None
    async for piece in _pieces(reader):
        data = splitter.feed(piece)
        if scanner is None and splitter.meta is not None:
            scanner = HeaderScanner(splitter.meta.transfer_syntax_uid)
        if scanner is not None:
            header = scanner.feed(data)
            if header is not None:
                break
    if splitter.meta is None or scanner is None:
        raise InvalidInstance(RejectReason.NOT_DICOM, object_key=reader.info.key)
    header = header or scanner.finish()
    dataset: DicomJson = {
        kept.SOP_CLASS_UID: {"vr": "UI", "Value": [header.sop_class_uid]},
        kept.SOP_INSTANCE_UID: {"vr": "UI", "Value": [header.sop_instance_uid]},
        kept.STUDY_INSTANCE_UID: {"vr": "UI", "Value": [header.study_instance_uid]},
        kept.SERIES_INSTANCE_UID: {"vr": "UI", "Value": [header.series_instance_uid]},
    }
    return Parsed(
        header=header,
        transfer_syntax_uid=splitter.meta.transfer_syntax_uid,
        attributes=dataset,
        metadata=dicom_metadata.encode(dataset),
        frames=b"",
    )


async def _pieces(reader: VaultReader) -> AsyncIterator[bytes]:
    for start in range(0, reader.size, _PIECE):
        yield await reader.read(start, start + _PIECE)


def _received_at(info: ObjectInfo) -> datetime:
    text = info.metadata.get("received_at", "")
    try:
        received = datetime.fromisoformat(text)
    except ValueError:
        return info.stored_at
    return received if received.tzinfo else received.replace(tzinfo=UTC)
