"""What is damaged: associations recorded on the wire from programs that people run, and real files."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from benchmarks.dimse import Association, DataSet
from tests.hostile.attacks import CT, IMPLICIT, ITEM, mark

from isocenter.common.dicom.header import HeaderScanner, InstanceHeader
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import InvalidInstance
from isocenter.ingest.dimse.pdu import PduType
from isocenter.ingest.testing import RELEASE_RQ, Scu, Wire, p_data

MAX_FILE = 40 << 10
PUSH_MODEL = "1.2.840.10008.1.20.1"


@dataclass(frozen=True)
class Sample:
    """One real file."""

    path: Path
    file: bytes
    data_set: bytes
    syntax: str
    header: InstanceHeader

    def numbered(self, number: int) -> tuple[str, bytes]:
        """SOP Instance UID and data set of a copy that is an instance of its own, in a study of some."""
        data = self.data_set
        sop, study = (
            _other(self.header.sop_instance_uid, number),
            _other(self.header.study_instance_uid, number // 100),
        )
        data = data.replace(self.header.sop_instance_uid.encode(), sop.encode())
        return sop, data.replace(self.header.study_instance_uid.encode(), study.encode())


def _other(uid: str, number: int) -> str:
    """Of the same length, so that no length has to change; the same UID where it is too short for that."""
    if len(uid) < 20:
        return uid
    stem = uid[: len(uid) - 9].rstrip(".")
    return stem + "." * (len(uid) - 9 - len(stem)) + f"1{number % 10**8:08d}" if stem else uid


def samples() -> list[Sample]:
    """The smaller files of pydicom's package that ingest takes, in the order of their names."""
    found = []
    root = Path(pydicom.__file__).parent / "data"
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.stat().st_size > MAX_FILE or path.suffix not in {".dcm", ""}:
            continue
        file, splitter = path.read_bytes(), Part10Splitter()
        try:
            data_set = bytes(splitter.feed(file)) + splitter.finish()
            assert splitter.meta is not None
            scanner = HeaderScanner(splitter.meta.transfer_syntax_uid)
            scanner.feed(data_set)
            header = scanner.finish()
        except InvalidInstance:
            continue
        found.append(Sample(path, file, data_set, splitter.meta.transfer_syntax_uid, header))
    return found


class Tap:
    """A port that passes everything on to another and keeps what the caller says."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._serving: set[asyncio.Task[None]] = set()
        self.streams: list[bytes] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._serving.add(asyncio.get_running_loop().create_task(self._serve(reader, writer)))

        server = await asyncio.start_server(begin, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            await asyncio.wait(self._serving, timeout=30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        said = bytearray()

        async def forward() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    said.extend(data)
                    back.write(data)
                back.write_eof()

        async def answer() -> None:
            with contextlib.suppress(OSError):
                while data := await there.read(1 << 16):
                    writer.write(data)
            writer.close()

        await asyncio.gather(forward(), answer())
        back.close()
        self.streams.append(bytes(said))


async def record(port: int, found: list[Sample]) -> list[bytes]:
    """Associations of pynetdicom, of the benchmarks' lean sender, and of DCMTK where it is installed."""
    tap = Tap(port)
    usable = [s for s in found if s.syntax in {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}][:24]
    paths = [sample.path for sample in usable]
    async with tap.listening() as listening:
        scu = Scu(listening, max_pdu=4096)
        await scu.echo()
        for start in range(0, len(paths), 6):
            await scu.store(*paths[start : start + 6])
        await asyncio.to_thread(_lean, listening, usable)
        await _ask_for_commitment(listening)
        for command, files in (("echoscu", []), ("storescu -xe", paths[:4]), ("storescu -xi", paths[:1])):
            program, *options = command.split()
            if shutil.which(program):
                line = [program, *options, "-aec", "ISOCENTER", "127.0.0.1", str(listening), *map(str, files)]
                await asyncio.to_thread(subprocess.run, line, capture_output=True, timeout=30, check=False)
    # In an order that does not depend on which connection ended first.
    return sorted(stream for stream in tap.streams if stream)


async def _ask_for_commitment(port: int) -> None:
    """N-ACTION of the Storage Commitment Push Model (PS3.4 section J.3.2) with two references."""
    reference = implicit(0x00081150, CT.encode()) + implicit(0x00081155, b"1.2.3.4")
    items = (mark(ITEM, len(reference)) + reference) * 2
    data_set = implicit(0x00081195, b"1.2.3.4.5.6") + implicit(0x00081199, items)
    command = b"".join(
        implicit(tag, value)
        for tag, value in (
            (0x0003, PUSH_MODEL.encode()),
            (0x0100, b"\x30\1"),
            (0x0110, b"\7\0"),
            (0x0800, b"\0\0"),
            (0x1001, b"1.2.840.10008.1.20.1.1"),
            (0x1008, b"\1\0"),
        )
    )
    wire = await Wire.open(port)
    if await wire.associate((PUSH_MODEL, IMPLICIT)) == PduType.ASSOCIATE_AC:
        await wire.send(p_data(1, command, command=True) + p_data(1, data_set, command=False))
        await wire.status()
        await wire.send(RELEASE_RQ)
        await wire.pdu()
    await wire.close()


def implicit(tag: int, value: bytes) -> bytes:
    """An element in implicit VR little endian."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _lean(port: int, found: list[Sample]) -> None:
    explicit = [sample for sample in found if sample.syntax == "1.2.840.10008.1.2.1"][:3]
    classes = sorted({sample.header.sop_class_uid for sample in explicit})
    with Association(("127.0.0.1", port), classes, calling="LEAN") as association:
        for sample in explicit:
            instance = DataSet(
                sample.header.sop_class_uid, sample.header.sop_instance_uid, (sample.data_set,)
            )
            association.store(instance)
