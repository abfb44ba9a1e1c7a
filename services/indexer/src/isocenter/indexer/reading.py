"""From a stored object to its `InstanceRecord`. Live indexing and rebuild both come through here, so that
they agree: everything in a record comes from the object and its metadata, nothing from the event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from isocenter.common.dicom import metadata as dicom_metadata
from isocenter.common.dicom.describe import describe
from isocenter.common.dicom.header import HeaderScanner, InstanceHeader
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import (
    IntegrityError,
    InvalidInstance,
    IsocenterError,
    NotFound,
    RejectReason,
    Transient,
)
from isocenter.common.index import attributes as kept
from isocenter.common.index.records import DicomJson, InstanceRecord
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.ports import ObjectInfo
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import Vault, VaultReader

_PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An object that could not become a record, and why. Its bytes are kept."""

    object_key: str
    error: IsocenterError


@dataclass(frozen=True, slots=True)
class RecordReader:
    vault: Vault
    keys: SiteKeys
    concurrency: int = 8

    async def read_all(
        self, study_key: str, object_keys: Sequence[str]
    ) -> tuple[list[InstanceRecord], list[Unreadable]]:
        """Records in the order asked for. A fault of one object does not touch the others."""
        gate = asyncio.Semaphore(self.concurrency)

        async def one(object_key: str) -> InstanceRecord | Unreadable:
            async with gate:
                try:
                    return await self.read(study_key, object_key)
                except NotFound:
                    # Announced objects are durable: a store that does not show it yet is behind.
                    return Unreadable(object_key, Transient("object is not there yet", object_key=object_key))
                except IsocenterError as error:
                    return Unreadable(object_key, error)

        outcomes = await asyncio.gather(*map(one, dict.fromkeys(object_keys)))
        return (
            [outcome for outcome in outcomes if isinstance(outcome, InstanceRecord)],
            [outcome for outcome in outcomes if isinstance(outcome, Unreadable)],
        )

    async def read(self, study_key: str, object_key: str) -> InstanceRecord:
        """Reads the header and the item structure of pixel data, never the pixels.

        Raises:
            NotFound, StoreUnavailable
            IntegrityError: the object is sealed for, or holds, another study than `study_key`.
            InvalidInstance: not even the UIDs can be read.
        """
        info = await self.vault.store.head(object_key)
        instance_key = info.metadata.get("instance_key", "")
        reader = self.vault.reader_of(info, SealContext(study_key, instance_key))
        described = await _describe(reader)
        header = described.header
        if self.keys.study_key(header.study_instance_uid) != study_key:
            raise IntegrityError("object belongs to another study", object_key=object_key)
        if self.keys.instance_key(header.sop_instance_uid) != instance_key:
            raise IntegrityError("object belongs to another instance", object_key=object_key)
        return InstanceRecord(
            study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            transfer_syntax_uid=described.transfer_syntax_uid,
            study_key=study_key,
            series_key=self.keys.series_key(header.series_instance_uid),
            instance_key=instance_key,
            object_key=object_key,
            content_digest=info.metadata.get("content_digest", ""),
            size_bytes=reader.size,
            received_at=_received_at(info),
            sender=info.metadata.get("sender", ""),
            attributes=described.attributes,
            metadata=described.metadata,
            frames=described.frames,
        )


@dataclass(frozen=True, slots=True)
class _Described:
    header: InstanceHeader
    transfer_syntax_uid: str
    attributes: DicomJson
    metadata: bytes
    frames: bytes


async def _describe(reader: VaultReader) -> _Described:
    try:
        description = await describe(reader.read, reader.size)
    except InvalidInstance:
        # The acceptor took it, so its UIDs can be read: it is found by them and retrieved whole.
        return await _describe_minimally(reader)
    return _Described(
        header=description.header,
        transfer_syntax_uid=description.transfer_syntax_uid,
        attributes=kept.select(description.attributes),
        metadata=description.metadata,
        frames=description.frames.pack() if description.frames else b"",
    )


async def _describe_minimally(reader: VaultReader) -> _Described:
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
    return _Described(
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
