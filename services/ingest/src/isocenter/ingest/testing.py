"""For tests of ingest: a bus that can be told to fail or to hang, instances, and a sender."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import, not declared

from isocenter.common.bus.delivery import DeliveryPolicy
from isocenter.common.clock import ManualClock
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import (
    CloudEvent,
    Event,
    InstanceRejected,
    InstancesStored,
    TransferClosed,
)
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.ports import ObjectStore
from isocenter.common.objects.sealing import Unsealed
from isocenter.common.service import Health, Ports
from isocenter.common.telemetry import Telemetry, noop
from isocenter.ingest.app import IngestService, build
from isocenter.ingest.dimse.pdu import PDU_HEADER, PDV_HEADER, PduType
from isocenter.ingest.pipeline import Intake, IntakeLimits
from isocenter.ingest.settings import IngestSettings

if TYPE_CHECKING:
    from isocenter.common.bus.factory import Bus

T = TypeVar("T")
E = TypeVar("E", bound=Event)


@dataclass
class FakeBus:
    """Keeps what is published. `gate` holds publishes back until it is set; `fail` makes them fail."""

    events: list[CloudEvent] = field(default_factory=list)
    fail: Callable[[CloudEvent], bool] = lambda _: False
    gate: asyncio.Event | None = None
    attempts: int = 0
    running: bool = False
    published: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first event."""

    policy: DeliveryPolicy = field(default_factory=DeliveryPolicy)
    subscribed: list[str] = field(default_factory=list)
    """Handlers' parts of the names of consumer groups. Nothing is delivered to them."""

    def subscribe(self, name: str, *_: object, **__: object) -> None:
        self.subscribed.append(name)

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def publish(self, event: CloudEvent) -> None:
        self.attempts += 1
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.fail(event):
            raise BusUnavailable("the fake bus is down")
        self.events.append(event)
        self.published.set()

    async def health(self) -> list[Health]:
        return [Health("bus", ok=self.running)]

    def of(self, kind: type[E]) -> list[E]:
        return [event.data for event in self.events if isinstance(event.data, kind)]

    @property
    def stored(self) -> list[InstancesStored]:
        return self.of(InstancesStored)

    @property
    def rejected(self) -> list[InstanceRejected]:
        return self.of(InstanceRejected)

    @property
    def closed(self) -> list[TransferClosed]:
        return self.of(TransferClosed)


@dataclass
class World:
    """What a test looks at."""

    bus: FakeBus
    clock: ManualClock
    store: ObjectStore
    keys: SiteKeys
    ports: Ports
    root: Path

    def intake(self, **limits: Any) -> Intake:
        return Intake(self.ports, IntakeLimits(**limits))

    def service(self, **settings: Any) -> IngestService:
        return build(IngestSettings(**({"dicom_port": 0} | settings)), self.ports)

    async def objects(self) -> dict[str, bytes]:
        return {info.key: await self.store.get(info.key) async for info in self.store.list("instances/")}

    def staged(self) -> list[Path]:
        """Files that are being written and no object yet."""
        return [
            path
            for path in (self.root / "staging").rglob("*")
            if path.is_file() and path.stat().st_size and path.stat().st_nlink == 1
        ]


def make_ports(
    store: ObjectStore,
    bus: FakeBus,
    keys: SiteKeys,
    clock: ManualClock,
    telemetry: Telemetry | None = None,
) -> Ports:
    return Ports(
        bus=cast("Bus", bus),
        store=store,
        sealing=Unsealed(),
        keys=keys,
        telemetry=telemetry or noop("ingest"),
        clock=clock,
    )


@dataclass
class Dicom:
    """Builds instances: small CT-like data sets with a private element and a name that must not leak."""

    def instance(
        self,
        *,
        study: str | None = None,
        series: str | None = None,
        sop: str | None = None,
        pixels: int = 64,
        name: str = "DOE^JANE",
    ) -> FileDataset:
        dataset = FileDataset("", Dataset(), preamble=bytes(128), file_meta=FileMetaDataset())
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = UID(sop) if sop else generate_uid()
        dataset.StudyInstanceUID = UID(study) if study else generate_uid()
        dataset.SeriesInstanceUID = UID(series) if series else generate_uid()
        dataset.PatientName = name
        dataset.Modality = "CT"
        dataset.add_new(0x00091001, "OB", b"\0\1\2\3")
        dataset.add_new(0x7FE00010, "OW", bytes(range(256)) * (pixels // 256) + bytes(pixels % 256))
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        return dataset

    def file(self, dataset: FileDataset) -> bytes:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    def data_set(self, file: bytes) -> bytes:
        """What follows preamble and file meta information."""
        splitter = Part10Splitter()
        return bytes(splitter.feed(file)) + splitter.finish()


class Scu:
    """pynetdicom as sender, in a thread. Files go over the wire as they are on disk."""

    def __init__(self, port: int, *, max_pdu: int = 16382) -> None:
        self.port = port
        self.max_pdu = max_pdu

    def associate(self, *contexts: tuple[str, str], called: str = "ISOCENTER") -> Association:
        ae = AE(ae_title="MODALITY")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        for abstract_syntax, transfer_syntax in contexts:
            ae.add_requested_context(abstract_syntax, transfer_syntax)
        return ae.associate("127.0.0.1", self.port, ae_title=called, max_pdu=self.max_pdu)

    async def store(self, *files: Path) -> list[int]:
        """One association, one C-STORE per file; the statuses, -1 where no answer came."""
        return await asyncio.to_thread(self._store, files)

    async def echo(self) -> int:
        return await asyncio.to_thread(self._echo)

    def _store(self, files: tuple[Path, ...]) -> list[int]:
        contexts = []
        for file in files:
            meta = read_file_meta_info(file)
            context = (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
            if context not in contexts:
                contexts.append(context)
        association = self.associate(*contexts)
        _require(established=association.is_established)
        statuses = []
        for file in files:
            status = association.send_c_store(file)
            statuses.append(status.Status if "Status" in status else -1)
        if association.is_established:
            association.release()
        return statuses

    def _echo(self) -> int:
        association = self.associate((str(Verification), "1.2.840.10008.1.2"))
        _require(established=association.is_established)
        status: int = association.send_c_echo().Status
        association.release()
        return status


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Returns when the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - files and lists of events have no asyncio.Event
            await asyncio.sleep(0.005)


class Wire:
    """A sender that says exactly what a test wants, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def pdu(self) -> tuple[int, bytes]:
        """Type and body of the next PDU; (0, b"") at the end of the stream."""
        try:
            kind, length = PDU_HEADER.unpack(await self.reader.readexactly(PDU_HEADER.size))
            return kind, await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return 0, b""

    async def associate(self, *contexts: tuple[str, str], max_pdu: int = 16384) -> int:
        """Proposes contexts 1, 3, 5...; the type of the answer."""
        await self.send(associate_rq(*contexts, max_pdu=max_pdu))
        kind, _ = await self.pdu()
        return kind

    async def status(self) -> int:
        """Status of the next response, from as many fragments as it has."""
        command = bytearray()
        while True:
            kind, body = await self.pdu()
            if kind != PduType.DATA:
                raise ConnectionError(f"a PDU of type {kind} instead of a response")
            command += body[6:]
            if body[5] & 2:
                break
        position = 0
        while position < len(command):
            _, element, length = struct.unpack_from("<HHL", command, position)
            if element == 0x0900:
                return int(struct.unpack_from("<H", command, position + 8)[0])
            position += 8 + length
        raise ConnectionError("a response without status")

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def associate_rq(
    *contexts: tuple[str, str], called: str = "ISOCENTER", max_pdu: int = 16384, calling: str = "WIRE"
) -> bytes:
    """An A-ASSOCIATE-RQ; each context is an abstract syntax and its transfer syntaxes, joined by commas."""
    items = [_item(0x10, b"1.2.840.10008.3.1.1.1")]
    for number, (abstract_syntax, transfer_syntaxes) in enumerate(contexts):
        syntaxes = [_item(0x30, abstract_syntax.encode())]
        syntaxes += [_item(0x40, uid.encode()) for uid in transfer_syntaxes.split(",")]
        items.append(_item(0x20, bytes((2 * number + 1, 0, 0, 0)) + b"".join(syntaxes)))
    user = _item(0x51, struct.pack(">L", max_pdu)) + _item(0x52, b"1.2.3")
    items.append(_item(0x50, user))
    titles = called.encode().ljust(16) + calling.encode().ljust(16)
    body = b"\0\1\0\0" + titles + bytes(32) + b"".join(items)
    return PDU_HEADER.pack(PduType.ASSOCIATE_RQ, len(body)) + body


def command_set(kind: int, *, sop_class: str = "", sop_instance: str = "", data_set: bool = False) -> bytes:
    """A DIMSE request with message ID 7."""
    values = [
        (0x0002, _even(sop_class)),
        (0x0100, struct.pack("<H", kind)),
        (0x0110, struct.pack("<H", 7)),
        (0x0800, struct.pack("<H", 0x0000 if data_set else 0x0101)),
        (0x1000, _even(sop_instance)),
    ]
    return b"".join(struct.pack("<HHL", 0, e, len(v)) + v for e, v in values if v)


def p_data(context_id: int, data: bytes, *, command: bool, piece: int = 16378) -> bytes:
    """Data as P-DATA-TF PDUs with one value of at most `piece` bytes each."""
    out = bytearray()
    for start in range(0, max(1, len(data)), piece):
        fragment = data[start : start + piece]
        control = (1 if command else 0) | (2 if start + piece >= len(data) else 0)
        out += PDU_HEADER.pack(PduType.DATA, len(fragment) + PDV_HEADER.size)
        out += PDV_HEADER.pack(len(fragment) + 2, context_id, control) + fragment
    return bytes(out)


RELEASE_RQ = PDU_HEADER.pack(PduType.RELEASE_RQ, 4) + bytes(4)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _even(uid: str) -> bytes:
    value = uid.encode()
    return value + b"\0" if len(value) % 2 else value


def _require(*, established: bool) -> None:
    if not established:
        raise ConnectionError("the association was not established")
