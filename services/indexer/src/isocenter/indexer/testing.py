"""A small site for the indexer's tests: real objects, real index, a clock that stands still."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from isocenter.common.clock import ManualClock
from isocenter.common.dicom.part10 import encode_file_meta
from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import (
    CloudEvent,
    InstancesStored,
    Protocol,
    StoredInstance,
    TransferClosed,
)
from isocenter.common.index.ports import Index
from isocenter.common.index.records import OutboxEntry
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.ports import ObjectStore
from isocenter.common.objects.sealing import SealContext, Unsealed
from isocenter.common.objects.vault import Vault
from isocenter.common.service import Ports
from isocenter.common.telemetry import Telemetry, noop
from isocenter.indexer.domain import SettlingPolicy
from isocenter.indexer.handlers import Handlers
from isocenter.indexer.outbox import OutboxRelay
from isocenter.indexer.reading import RecordReader
from isocenter.indexer.settler import Settler

if TYPE_CHECKING:
    from isocenter.common.bus.factory import Bus

STUDY = "1.2.826.0.1.3680043.8.498.1"


def dataset(study: str = STUDY, series: int = 1, number: int = 1, **values: object) -> Dataset:
    """A CT slice of 4 x 4 pixels; `values` are DICOM keywords and may break the rules of their VR."""
    with disable_value_validation():
        return _dataset(study, series, number, values)


def _dataset(study: str, series: int, number: int, values: Mapping[str, object]) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{study}.{series}.{number}"
    ds.StudyInstanceUID = study
    ds.SeriesInstanceUID = f"{study}.{series}"
    ds.PatientName = "Doe^Jane"
    ds.PatientID = "MRN-4711"
    ds.StudyDate = "20240229"
    ds.Modality = "CT"
    ds.SeriesNumber = series
    ds.InstanceNumber = number
    ds.Rows = ds.Columns = 4
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.SamplesPerPixel = 1
    ds.PixelRepresentation = 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.PixelData = bytes(range(32))
    return ds


def part10(ds: Dataset) -> bytes:
    """The file that ingest would store."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    with disable_value_validation():
        write_dataset(buffer, ds)
    return (
        encode_file_meta(
            sop_class_uid=ds.SOPClassUID,
            sop_instance_uid=ds.SOPInstanceUID,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        + buffer.getvalue()
    )


class FakeBus:
    """Keeps what is published. `down` makes publishing fail; `refused` keys are refused for good."""

    def __init__(self) -> None:
        self.entries: list[OutboxEntry] = []
        self.down = False

    async def publish_entry(self, entry: OutboxEntry) -> None:
        if self.down:
            raise BusUnavailable("down")
        self.entries.append(entry)

    @property
    def types(self) -> list[str]:
        """Short event types in order, e.g. `study.settled`."""
        return [
            entry.headers["ce_type"].removeprefix("org.isocenter.imaging.").removesuffix(".v1")
            for entry in self.entries
        ]


@dataclass
class Site:
    """Everything the indexer uses, without the service around it."""

    folder: Path
    store: ObjectStore
    index: Index
    clock: ManualClock = field(default_factory=ManualClock)
    keys: SiteKeys = field(default_factory=lambda: SiteKeys(bytes(32)))
    bus: FakeBus = field(default_factory=FakeBus)
    telemetry: Telemetry = field(default_factory=lambda: noop("indexer"))
    policy: SettlingPolicy = field(default_factory=SettlingPolicy)
    sent: list[CloudEvent] = field(default_factory=list)
    """Every event that went through `deliver`, for replays."""

    @classmethod
    async def open(cls, folder: Path) -> Site:
        return cls(
            folder, LocalObjectStore(folder / "objects"), await SqliteIndex.open(folder / "index.sqlite")
        )

    async def close(self) -> None:
        await self.index.close()
        await self.store.close()

    async def restart(self) -> None:
        """The process ends and starts again: only what is on disk is left."""
        await self.close()
        self.store = LocalObjectStore(self.folder / "objects")
        self.index = await SqliteIndex.open(self.folder / "index.sqlite")

    @property
    def vault(self) -> Vault:
        return Vault(self.store, Unsealed())

    @property
    def ports(self) -> Ports:
        return Ports(
            bus=cast("Bus", self.bus),
            store=self.store,
            sealing=Unsealed(),
            keys=self.keys,
            telemetry=self.telemetry,
            clock=self.clock,
            index=self.index,
        )

    @property
    def handlers(self) -> Handlers:
        records = RecordReader(self.vault, self.keys)
        return Handlers(self.index, records, self.policy, self.clock, self.telemetry, lambda: None)

    @property
    def settler(self) -> Settler:
        return Settler(self.index, self.vault, self.keys, self.clock, self.telemetry, 30, lambda: None)

    @property
    def relay(self) -> OutboxRelay:
        return OutboxRelay(self.index, self.bus.publish_entry, self.telemetry)

    async def put(self, ds: Dataset, *, data: bytes | None = None) -> StoredInstance:
        """Stores an instance as ingest does: bytes, and metadata that a rebuild needs."""
        data = part10(ds) if data is None else data
        digest = hashlib.sha256(data).hexdigest()
        study_key = self.keys.study_key(ds.StudyInstanceUID)
        stored = StoredInstance(
            instance_key=self.keys.instance_key(ds.SOPInstanceUID),
            series_key=self.keys.series_key(ds.SeriesInstanceUID),
            object_key=self.keys.object_key(ds.SOPInstanceUID, ExplicitVRLittleEndian, digest),
            content_digest=digest,
            size_bytes=len(data),
            sop_class_uid=ds.SOPClassUID,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            received_at=self.clock.now(),
        )
        metadata = {
            "study_key": study_key,
            "series_key": stored.series_key,
            "instance_key": stored.instance_key,
            "content_digest": digest,
            "transfer_syntax_uid": stored.transfer_syntax_uid,
            "sop_class_uid": stored.sop_class_uid,
            "received_at": stored.received_at.isoformat(),
            "sender": "SCANNER",
            "protocol": "dimse",
            "transfer_id": "t",
        }
        await self.vault.put(stored.object_key, SealContext(study_key, stored.instance_key), data, metadata)
        return stored

    def stored_event(
        self, instances: Sequence[StoredInstance], *, study: str = STUDY, transfer: str = "t"
    ) -> CloudEvent:
        return self._event(
            InstancesStored(
                study_key=self.keys.study_key(study),
                transfer_id=transfer,
                protocol=Protocol.DIMSE,
                sender="SCANNER",
                instances=list(instances),
            )
        )

    def closed_event(self, *, study: str = STUDY, transfer: str = "t", instances: int = 1) -> CloudEvent:
        return self._event(
            TransferClosed(
                study_key=self.keys.study_key(study),
                transfer_id=transfer,
                protocol=Protocol.DIMSE,
                sender="SCANNER",
                instances=instances,
                aborted=False,
                closed_at=self.clock.now(),
            )
        )

    def _event(self, data: InstancesStored | TransferClosed) -> CloudEvent:
        return CloudEvent(
            id=self.clock.new_id(), source="/isocenter/ingest", time=self.clock.now(), data=data
        )

    async def deliver(self, event: CloudEvent) -> None:
        self.sent.append(event)
        await self._handle(event)

    async def _handle(self, event: CloudEvent) -> None:
        if isinstance(event.data, InstancesStored):
            await self.handlers.instances_stored(event)
        else:
            await self.handlers.transfer_closed(event)

    async def replay(self) -> None:
        """Delivers every event again, from the first."""
        for event in self.sent:
            await self._handle(event)

    async def receive(self, *datasets: Dataset, transfer: str = "t") -> None:
        """Stores and indexes instances of one study."""
        stored = [await self.put(ds) for ds in datasets]
        await self.deliver(self.stored_event(stored, study=datasets[0].StudyInstanceUID, transfer=transfer))

    async def pass_quiet_period(self) -> int:
        """Time goes by until everything is due, settled, told and confirmed; returns how many were tried."""
        self.clock.advance(self.policy.quiet.total_seconds())
        tried = await self.settler.run_once()
        await self.relay.run_once()
        await self.settler.confirm()
        return tried

    async def dump(self) -> list[str]:
        return [line async for line in self.index.dump()]

    async def keys_under(self, prefix: str) -> list[str]:
        return [info.key async for info in self.store.list(prefix)]
