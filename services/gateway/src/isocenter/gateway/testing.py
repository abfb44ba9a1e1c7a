"""For tests: a site with real stores, filled without ingest or indexer."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from isocenter.common.clock import ManualClock
from isocenter.common.dicom.describe import describe
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.index.attributes import select
from isocenter.common.index.ports import Applied, Arrival
from isocenter.common.index.records import InstanceRecord, OutboxEntry
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.sealing import SealContext, Unsealed
from isocenter.common.objects.vault import Vault
from isocenter.common.service import Ports
from isocenter.common.telemetry import Telemetry, recording
from isocenter.gateway.app import Gateway, build
from isocenter.gateway.settings import GatewaySettings

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class NoBus:
    """The gateway neither publishes nor consumes: any use of its bus fails the test."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the gateway used the bus: {name}")


def no_events(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
    return ()


@dataclass
class Site:
    """The stores of a test, and what the gateway shows of them."""

    index: SqliteIndex
    store: LocalObjectStore
    keys: SiteKeys
    clock: ManualClock
    telemetry: Telemetry
    spans: InMemorySpanExporter
    log: io.StringIO
    kept: dict[str, InstanceRecord] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)

    @property
    def ports(self) -> Ports:
        return Ports(
            bus=cast("Any", NoBus()),
            store=self.store,
            sealing=Unsealed(),
            keys=self.keys,
            telemetry=self.telemetry,
            clock=self.clock,
            index=self.index,
        )

    def gateway(self, **settings: Any) -> Gateway:
        return build(GatewaySettings.load(**settings), self.ports)

    async def keep(self, *objects: bytes) -> list[InstanceRecord]:
        """Stores and indexes Part 10 objects."""
        return [await self._keep(data) for data in objects]

    async def _keep(self, data: bytes) -> InstanceRecord:
        splitter = Part10Splitter()
        body = bytes(splitter.feed(data)) + bytes(splitter.finish())
        digest = hashlib.sha256(body).hexdigest()

        async def read(start: int, end: int) -> bytes:
            return data[start:end]

        described = await describe(read, len(data))
        header = described.header
        syntax = described.transfer_syntax_uid
        record = InstanceRecord(
            study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            transfer_syntax_uid=syntax,
            study_key=self.keys.study_key(header.study_instance_uid),
            series_key=self.keys.series_key(header.series_instance_uid),
            instance_key=self.keys.instance_key(header.sop_instance_uid),
            object_key=self.keys.object_key(header.sop_instance_uid, syntax, digest),
            content_digest=digest,
            size_bytes=len(data),
            received_at=self.clock.now(),
            sender="TEST",
            attributes=select(described.attributes),
            metadata=described.metadata,
            frames=described.frames.pack() if described.frames is not None else b"",
        )
        vault = Vault(self.store, Unsealed())
        await vault.put(record.object_key, SealContext(record.study_key, record.instance_key), data)
        now = self.clock.now()
        arrival = Arrival(now, now + timedelta(seconds=5), now + timedelta(seconds=60), TRACEPARENT)
        await self.index.apply([record], arrival, no_events)
        self.kept[record.sop_instance_uid] = record
        self.sent[record.sop_instance_uid] = data
        return record


@asynccontextmanager
async def open_site(directory: Path) -> AsyncIterator[Site]:
    """An empty site."""
    spans, log = InMemorySpanExporter(), io.StringIO()
    telemetry = recording("gateway", spans, log)
    store = LocalObjectStore(directory / "objects")
    index = await SqliteIndex.open(directory / "index.sqlite", default_issuer="local")
    try:
        yield Site(index, store, SiteKeys(b"k" * 32), ManualClock(), telemetry, spans, log)
    finally:
        await index.close()
        await store.close()
        telemetry.shutdown()


def ct(study: int = 1, series: int = 1, number: int = 1, **attributes: Any) -> Dataset:
    """A small CT image; UIDs follow from the numbers."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.StudyInstanceUID = f"1.2.826.0.1.99.{study}"
    dataset.SeriesInstanceUID = f"1.2.826.0.1.99.{study}.{series}"
    dataset.SOPInstanceUID = f"1.2.826.0.1.99.{study}.{series}.{number}"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = f"MRN{study}"
    dataset.PatientBirthDate = "19700101"
    dataset.PatientSex = "F"
    dataset.StudyDate = f"200301{study:02}"
    dataset.StudyTime = "103000"
    dataset.AccessionNumber = f"A{study}"
    dataset.StudyID = str(study)
    dataset.StudyDescription = "Head"
    dataset.ReferringPhysicianName = "Roe^Richard"
    dataset.Modality = "CT"
    dataset.SeriesDescription = "Axial"
    dataset.SeriesNumber = series
    dataset.InstanceNumber = number
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Rows, dataset.Columns = 8, 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = struct.pack("<128H", *range(number, number + 128))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def part10(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set as a Part 10 object."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = FileDataset("", dataset, file_meta=meta, preamble=b"\0" * 128)
    target = io.BytesIO()
    file.save_as(target, enforce_file_format=True)
    return target.getvalue()


def studies(count: int, series: int = 1, instances: int = 1) -> Iterable[bytes]:
    for study in range(1, count + 1):
        for each in range(1, series + 1):
            for number in range(1, instances + 1):
                yield part10(ct(study, each, number))
