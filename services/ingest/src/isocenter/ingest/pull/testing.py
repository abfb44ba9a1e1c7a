"""For tests of pulls: announcements, what is known, and a DICOMweb server that may misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

from isocenter.common.events.models import CloudEvent, LocationKind, StudyAnnounced, StudyLocation
from isocenter.common.index.ports import IndexReader
from isocenter.ingest.pull.puller import Puller
from isocenter.ingest.pull.sources import AnySource, Sources
from isocenter.ingest.testing import Dicom, World

BOUNDARY = "0d1c0m"


def announcement(study: str, ref: str, instances: int | None = None) -> CloudEvent:
    kind = {"s3": LocationKind.S3, "dimse": LocationKind.DIMSE}.get(ref.partition("://")[0])
    location = StudyLocation(kind=kind or LocationKind.DICOMWEB, ref=ref)
    data = StudyAnnounced(study_instance_uid=study, location=location, instances=instances, sender="RIS")
    return CloudEvent(id="1", source="/ris", time=datetime(2026, 1, 1, tzinfo=UTC), data=data)


class Known:
    """An index, as far as a pull asks it."""

    def __init__(self, uids: Iterable[str] = ()) -> None:
        self.uids = set(uids)

    async def instances(self, _study: str) -> AsyncIterator[Any]:
        for uid in self.uids:
            yield _Record(uid)


@dataclass(frozen=True)
class _Record:
    sop_instance_uid: str


def puller(world: World, *sources: AnySource, known: Known | None = None, limit: float = 20) -> Puller:
    return Puller(
        world.intake(),
        Sources(sources),
        index=cast("IndexReader | None", known),
        our_ae_title="ISOCENTER",
        limit_seconds=limit,
    )


@dataclass
class Study:
    """Instances of one study, in two series."""

    uid: str
    files: dict[str, bytes]
    series: dict[str, str]

    @classmethod
    def make(cls, dicom: Dicom, count: int = 6, pixels: int = 4096) -> Study:
        uid, halves = str(generate_uid()), [str(generate_uid()), str(generate_uid())]
        made: list[FileDataset] = [
            dicom.instance(study=uid, series=halves[number % 2], pixels=pixels) for number in range(count)
        ]
        return cls(
            uid,
            {str(each.SOPInstanceUID): dicom.file(each) for each in made},
            {str(each.SOPInstanceUID): str(each.SeriesInstanceUID) for each in made},
        )


Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class DicomwebServer:
    """HTTP/1.1, one request per connection. `answer` may be replaced by a misbehaving one."""

    study: Study
    answer: Answer | None = None
    requests: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    port: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[DicomwebServer]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            self.requests.append(path.removeprefix("/dicom-web"))
            self.headers.append(head)
            await (self.answer or self.honest)(path, writer)
            await writer.drain()

    async def honest(self, path: str, writer: asyncio.StreamWriter) -> None:
        if "/instances?" in path:
            send(writer, b"[]" if "offset=0" not in path else self.listing(), "application/dicom+json")
            return
        files = [data for uid, data in self.study.files.items() if f"instances/{uid}" in path]
        if "/instances/" not in path:
            wanted = path.rpartition("/series/")[2] if "/series/" in path else ""
            files = [data for uid, data in self.study.files.items() if wanted in {"", self.study.series[uid]}]
        send(writer, multipart(files), f'multipart/related; type="application/dicom"; boundary={BOUNDARY}')

    def listing(self) -> bytes:
        return json.dumps(
            [
                {
                    "00080018": {"vr": "UI", "Value": [uid]},
                    "0020000E": {"vr": "UI", "Value": [series]},
                }
                for uid, series in self.study.series.items()
            ]
        ).encode()


def multipart(files: Iterable[bytes]) -> bytes:
    parts = [b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (BOUNDARY.encode(), f) for f in files]
    return b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode()


def send(
    writer: asyncio.StreamWriter, body: bytes, kind: str, status: str = "200 OK", length: int | None = None
) -> None:
    said = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {said}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
