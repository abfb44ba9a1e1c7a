"""A running ingest with real sockets in this process, and what is asked of it after an attack."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.attacks import CT, EXPLICIT, Instance

from isocenter.common.errors import RejectReason
from isocenter.ingest.dimse.pdu import PduType
from isocenter.ingest.testing import RELEASE_RQ, Wire, World, command_set, p_data, until

BOUNDARY = "hostile-boundary"
MULTIPART = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
PATIENCE = 20.0
"""Seconds for anything that must happen at all."""


@dataclass
class Answer:
    """Of an HTTP request; status 0: the connection ended without one."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Address:
    """Where an ingest listens, and what a sender can do there."""

    dicom_port: int
    http_port: int

    async def associate(self, *contexts: tuple[str, str]) -> Wire:
        wire = await Wire.open(self.dicom_port)
        assert await wire.associate(*(contexts or ((CT, EXPLICIT),))) == PduType.ASSOCIATE_AC
        return wire

    async def c_store(
        self, instance: Instance, data_set: bytes | None = None, *, sop: str | None = None
    ) -> int:
        """The status of one C-STORE on an association of its own."""
        data_set = instance.data_set() if data_set is None else data_set
        wire = await self.associate((CT, instance.syntax))
        command = command_set(1, sop_class=CT, sop_instance=sop or instance.sop, data_set=True)
        await wire.send(p_data(1, command, command=True) + p_data(1, data_set, command=False))
        async with asyncio.timeout(PATIENCE):
            status = await wire.status()
            await wire.send(RELEASE_RQ)
            assert (await wire.pdu())[0] == PduType.RELEASE_RP
        await wire.close()
        return status

    async def raw(self, request: bytes, *, eof: bool = False, drip: bytes = b"") -> list[Answer]:
        """Writes bytes to the HTTP port and reads answers until the connection ends. The request should ask
        for its end, or be one after which the server ends it. `drip` follows byte by byte.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)

        async def write() -> None:
            with contextlib.suppress(OSError):
                for start in range(0, len(request), 1 << 16):
                    writer.write(request[start : start + (1 << 16)])
                    await writer.drain()
                for byte in drip:
                    writer.write(bytes((byte,)))
                    await writer.drain()
                    await asyncio.sleep(0.01)
                if eof:
                    writer.write_eof()

        writing = asyncio.create_task(write())
        answers: list[Answer] = []
        try:
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                    while True:
                        answers.append(await _answer(reader))
        finally:
            writing.cancel()
            await asyncio.wait({writing})
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return answers

    async def post(
        self, body: bytes, content_type: str = MULTIPART, path: str = "", **headers: str
    ) -> Answer:
        """One STOW-RS request with a truthful Content-Length."""
        answers = await self.raw(head(len(body), content_type, path, **headers) + body)
        return answers[0] if answers else Answer()


@dataclass
class Site(Address):
    """An ingest of this process. `kept` counts the objects that it should hold."""

    world: World
    kept: int = 0

    async def assert_unharmed(self) -> None:
        """It stores, nothing half done is left, and nothing that was refused."""
        assert await self.c_store(Instance().numbered()) == 0
        self.kept += 1
        answer = await self.post(multipart(Instance().numbered().file()))
        assert answer.status == 200
        self.kept += 1
        assert len(await self.world.objects()) == self.kept
        await until(lambda: not self.world.staged())

    async def assert_rejected(self, reason: RejectReason, status: int, times: int = 1) -> None:
        """So many `instance.rejected` events were published, all with this reason and status."""
        await until(lambda: len(self.world.bus.rejected) >= times)
        found = [(event.reason, event.status) for event in self.world.bus.rejected]
        assert [(reason, status)] * times == found

    def outside(self) -> set[Path]:
        """Whatever is beside the store's own directory."""
        return {path for path in self.world.root.parent.iterdir() if path != self.world.root}


async def _answer(reader: asyncio.StreamReader) -> Answer:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer = Answer(int(lines[0].split()[1]))
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name:
            answer.headers[name.lower()] = value.strip()
    if "content-length" in answer.headers:
        answer.body = await reader.readexactly(int(answer.headers["content-length"]))
    else:
        answer.body = await reader.read()
    return answer


def head(length: int | str, content_type: str = MULTIPART, path: str = "", **headers: str) -> bytes:
    fields = {
        "Host": "localhost",
        "Content-Type": content_type,
        "Content-Length": str(length),
        "Connection": "close",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"POST /dicom-web/studies{path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


def multipart(
    *files: bytes, closing: bool = True, header: bytes = b"Content-Type: application/dicom\r\n"
) -> bytes:
    body = b"".join(b"--%s\r\n%s\r\n%s\r\n" % (BOUNDARY.encode(), header, file) for file in files)
    return body + (b"--%s--\r\n" % BOUNDARY.encode() if closing else b"")


def failure_reasons(answer: Answer) -> list[int]:
    """FailureReason (0008,1197) of every instance that a STOW-RS answer says was refused."""
    document = json.loads(answer.body)
    items = [item for tag in ("00081198", "0008119A") for item in document.get(tag, {}).get("Value", ())]
    return [item["00081197"]["Value"][0] for item in items]


# -- bounds ---------------------------------------------------------------------------------------------


def _memory(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) << 10


@contextlib.contextmanager
def bounded(*, cpu_seconds: float = 3.0, megabytes: int = 48) -> Iterator[None]:
    """The block costs at most so much processor time and so much more resident memory at its peak.

    Sender and receiver are one process here, so both count.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    before, began = _memory("VmRSS"), time.process_time()
    yield
    spent, grown = time.process_time() - began, _memory("VmHWM") - before
    assert spent < cpu_seconds
    assert grown < megabytes << 20


async def aborted(wire: Wire) -> tuple[int, int] | None:
    """Source and reason of the A-ABORT that ends the association; None: it ended without one."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                kind, body = await wire.pdu()
            except OSError:
                return None
            if kind == PduType.ABORT:
                found = (body[2], body[3])
                assert (await wire.pdu())[0] == 0
                return found
            if kind == 0:
                return None


def pdu(kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    """A PDU that claims `length`."""
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Site]]
