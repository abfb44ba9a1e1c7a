"""For tests and benchmarks: a site with real stores that no ingest filled, and synthetic series."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from isocenter.common.bus.client import Bus
from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.clock import ManualClock
from isocenter.common.dicom.describe import describe
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.events.models import (
    CloudEvent,
    Event,
    SettleReason,
    StudyEvicted,
    StudySettled,
    StudyStaged,
)
from isocenter.common.index.attributes import select
from isocenter.common.index.manifest import ManifestWriter
from isocenter.common.index.ports import Applied, Arrival, RestoredRevision
from isocenter.common.index.records import InstanceRecord, OutboxEntry
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.sealing import SealContext, Unsealed
from isocenter.common.objects.vault import Vault
from isocenter.common.service import Ports
from isocenter.common.telemetry import noop, recording
from isocenter.gpu_stager.app import GpuStager, build
from isocenter.gpu_stager.building import Builder
from isocenter.gpu_stager.client import Stager
from isocenter.gpu_stager.fetching import Fetcher
from isocenter.gpu_stager.manifest import MANIFEST, Entry
from isocenter.gpu_stager.pixels.plan import Plan
from isocenter.gpu_stager.settings import GpuStagerSettings

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROOT = "1.2.826.0.1.3680043.8.498."


class Steps:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def fetching(self) -> None:
        self.seen.append("fetching")

    def decoding(self) -> None:
        self.seen.append("decoding")

    def writing(self) -> None:
        self.seen.append("writing")


def no_events(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
    return ()


@dataclass
class Site:
    """The stores of a test."""

    index: SqliteIndex
    store: LocalObjectStore
    keys: SiteKeys
    clock: ManualClock
    folder: Path
    decoders: ThreadPoolExecutor
    versions: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def open(cls, folder: Path) -> Self:
        return cls(
            index=await SqliteIndex.open(folder / "index.sqlite", default_issuer="local"),
            store=LocalObjectStore(folder / "objects"),
            keys=SiteKeys.load_or_create(folder / "site.key"),
            clock=ManualClock(),
            folder=folder,
            decoders=ThreadPoolExecutor(2),
        )

    async def close(self) -> None:
        await self.store.close()
        await self.index.close()
        self.decoders.shutdown()

    @property
    def vault(self) -> Vault:
        return Vault(self.store, Unsealed())

    def builder(self) -> Builder:
        return Builder(Fetcher(self.vault, asyncio.Semaphore(16)), self.decoders)

    async def keep(self, *objects: bytes) -> list[InstanceRecord]:
        """Stores and indexes Part 10 objects."""
        return [await self._keep(data) for data in objects]

    async def settle(self, study_instance_uid: str) -> dict[str, str]:
        """Writes a manifest for each series; series key -> object key."""
        writers: dict[str, ManifestWriter] = {}
        async for record in self.index.instances(study_instance_uid):
            writers.setdefault(record.series_key, ManifestWriter(record)).add(record)
        manifests = {}
        for series_key, writer in writers.items():
            key, plaintext = writer.finish(self.keys)
            await self.vault.put(key, SealContext(writer.study_key, key), plaintext)
            manifests[series_key] = key
        version = self.versions[study_instance_uid] = self.versions.get(study_instance_uid, 0) + 1
        restored = RestoredRevision(version, SettleReason.QUIET, self.clock.now(), manifests)
        await self.index.restore_revision(study_instance_uid, restored, settled=True)
        return manifests

    async def stage(self, *objects: bytes) -> tuple[Path, Entry]:
        """The entry of the one series that these objects are, outside any cache."""
        records = await self.keep(*objects)
        manifests = await self.settle(records[0].study_instance_uid)
        builder = self.builder()
        plan: Plan = await builder.plan(records[0].study_key, manifests[records[0].series_key])
        folder = self.folder / "staged" / plan.name
        folder.mkdir(parents=True)
        entry = await builder.build(plan, folder, Steps())
        (folder / MANIFEST).write_bytes(entry.to_json())
        return folder, Entry.from_json((folder / MANIFEST).read_bytes())

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
        await self.vault.put(record.object_key, SealContext(record.study_key, record.instance_key), data)
        now = self.clock.now()
        arrival = Arrival(now, now + timedelta(seconds=5), now + timedelta(seconds=60), TRACEPARENT)
        await self.index.apply([record], arrival, no_events)
        return record


@dataclass
class World:
    """A running stager over a site, with the event log of an embedded platform."""

    site: Site
    service: GpuStager
    transport: EmbeddedTransport
    indexer: Bus
    spans: InMemorySpanExporter
    seen: list[CloudEvent] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path, **settings: Any) -> AsyncIterator[Self]:
        """Leaving stops it; the folder can be used again."""
        site = await Site.open(folder)
        transport = EmbeddedTransport(folder / "bus.sqlite")
        spans = InMemorySpanExporter()
        telemetry = recording("gpu-stager", spans)
        settings = {"prefetch": "none", "quota_bytes": 1 << 30, "min_free": 0.0, **settings}
        ports = Ports(
            bus=transport.bus("gpu-stager", telemetry),
            store=site.store,
            sealing=Unsealed(),
            keys=site.keys,
            telemetry=telemetry,
            clock=site.clock,
            index=site.index,
            data_dir=folder,
        )
        service = build(GpuStagerSettings.load(node="gpu-1", **settings), ports)
        indexer = transport.bus("indexer", noop("indexer"))
        world = cls(site, service, transport, indexer, spans)

        async def saw(event: CloudEvent) -> None:
            world.seen.append(event)

        watcher = transport.bus("watcher", noop("watcher"))
        watcher.subscribe("all", StudySettled.topic, {StudyStaged: saw, StudyEvicted: saw})
        await service.start()
        await indexer.start()
        await watcher.start()
        try:
            yield world
        finally:
            await watcher.stop()
            await indexer.stop()
            await service.stop()
            await transport.close()
            await site.close()

    async def settle(self, *objects: bytes) -> str:
        """Stores, settles and announces a study; its key."""
        records = await self.site.keep(*objects)
        uid, key = records[0].study_instance_uid, records[0].study_key
        manifests = await self.site.settle(uid)
        now = self.site.clock.now()
        settled = StudySettled(
            study_key=key,
            version=self.site.versions[uid],
            reason=SettleReason.QUIET,
            series=len(manifests),
            instances=len(records),
            size_bytes=0,
            modalities=["CT"],
            revision=f"revisions/{key}",
            manifests=sorted(manifests.values()),
            settled_at=now,
        )
        await self.indexer.publish(
            CloudEvent(id=self.site.clock.new_id(), source="/isocenter/indexer", time=now, data=settled)
        )
        return key

    async def command(self, data: Event) -> None:
        now = self.site.clock.now()
        await self.indexer.publish(
            CloudEvent(id=self.site.clock.new_id(), source="/isocenter/operator", time=now, data=data)
        )

    async def until(self, seen: Callable[[], bool], seconds: float = 15.0) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not seen():  # noqa: ASYNC110 - what is looked at tells nobody
                await asyncio.sleep(0.02)

    def client(self, **options: Any) -> Stager:
        return Stager(self.service.socket, **options)


def volume_of(folder: Path, entry: Entry, number: int = 0) -> npt.NDArray[Any]:
    """The staged array as a plain reader sees the file."""
    stack = entry.stacks[number]
    with (folder / stack.data).open("rb") as file:
        data = file.read(stack.volume_bytes)
    return np.frombuffer(data, np.dtype(stack.dtype)).reshape(stack.shape)


def ct(
    slices: int = 4,
    *,
    shape: tuple[int, int] = (64, 64),
    seed: int = 0,
    change: Callable[[Dataset, int], None] | None = None,
    study: int = 1,
    series: int = 1,
) -> list[FileDataset]:
    """An axial CT: 12 bits in 16, signed, slices 2.5 mm apart, pixels of 0.7 (rows) by 0.8 (columns) mm."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = UID(f"{ROOT}{study}.{series}.{seed}.{index + 1}")
        dataset.StudyInstanceUID = UID(f"{ROOT}{study}")
        dataset.SeriesInstanceUID = UID(f"{ROOT}{study}.{series}")
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PatientID, dataset.PatientName = "P1", "DOE^JANE"
        dataset.StudyID, dataset.AccessionNumber = "1", "A1"
        dataset.Modality = "CT"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SeriesNumber, dataset.InstanceNumber = series, index + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-100.0, -120.0, 10 + 2.5 * index]
        dataset.PixelSpacing = [0.7, 0.8]
        dataset.SliceThickness = 2.5
        dataset.FrameOfReferenceUID = UID(f"{ROOT}{study}.0")
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        dataset.WindowCenter, dataset.WindowWidth = 40, 400
        rows, columns = shape
        ramp = np.add.outer(np.arange(rows), np.arange(columns)) % 2048 - 512
        set_pixels(dataset, (ramp + random.integers(-40, 40, shape) + index).astype("<i2"), bits_stored=12)
        if change is not None:
            change(dataset, index)
        made.append(dataset)
    return made


def set_pixels(dataset: Dataset, pixels: npt.NDArray[Any], *, bits_stored: int | None = None) -> None:
    """Native pixel data: (rows, columns), (frames, rows, columns), or either with 3 samples at the end."""
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    shape = pixels.shape[:-1] if colour else pixels.shape
    dataset.Rows, dataset.Columns = shape[-2:]
    if len(shape) == 3:
        dataset.NumberOfFrames = shape[0]
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = bits_stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    dataset.add_new(0x7FE00010, "OW", data + b"\0" * (len(data) % 2))


def part10(datasets: Iterable[FileDataset]) -> list[bytes]:
    written = []
    for dataset in datasets:
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        written.append(buffer.getvalue())
    return written
