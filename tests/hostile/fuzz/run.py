"""Cases by number: what case n of a seed sends is the same in every run, whatever else runs beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.hostile.attacks import CT
from tests.hostile.fuzz import mutate
from tests.hostile.fuzz.corpus import Sample
from tests.hostile.site import head, multipart

from isocenter.common.dicom.part10 import encode_file_meta
from isocenter.ingest.dimse.pdu import PduType
from isocenter.ingest.testing import Wire, associate_rq, command_set, p_data

LANES = 12
PATIENCE = 60.0
"""Seconds after which a case counts as one that hangs. The machine may be busy with other things."""
DEFECT, OUT_OF_RESOURCES = 0x0110, 0xA700


class Hangs(Exception):
    """No answer and no end of the connection in time."""


@dataclass
class Fuzz:
    """Cases against one platform.

    Attributes:
        heard: what came back, counted: statuses in hexadecimal, HTTP statuses, ends of connections.
        wrong: cases that heard what no input may lead to, with their numbers.
    """

    seed: int
    dicom_port: int
    http_port: int
    streams: list[bytes]
    samples: list[Sample]
    alive: Callable[[], bool]
    done: Callable[[], None] = lambda: None
    heard: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self, cases: range) -> None:
        """Sends these cases over some lanes at once. Raises Hangs."""
        numbers = iter(cases)

        async def lane() -> None:
            async with contextlib.AsyncExitStack() as stack:
                sender = Sender(self, stack)
                for number in numbers:
                    if not self.alive() or self.wrong:
                        return
                    try:
                        async with asyncio.timeout(PATIENCE):
                            await self._case(number, sender)
                    except TimeoutError:
                        raise Hangs(f"case {number} of seed {self.seed}") from None
                    self.done()

        async with asyncio.TaskGroup() as group:
            for _ in range(LANES):
                group.create_task(lane())

    async def _case(self, number: int, sender: Sender) -> None:
        chance = Random(f"{self.seed}:{number}")
        kind = chance.random()
        if kind < 0.4:
            await self._association(chance)
        elif kind < 0.85:
            sample = chance.choice(self.samples)
            sop, data = sample.numbered(number)
            status = await sender.store(sample, sop, mutate.data_set(data, sample.syntax, chance))
            self.heard[f"C-STORE {status:04X}"] += 1
            if status in {DEFECT, OUT_OF_RESOURCES}:
                self.wrong.append(f"case {number} of seed {self.seed}: status {status:04X}")
        elif kind < 0.97:
            await self._http(number, *self._instances(number, chance), chance)
        else:
            await self._http(number, *_references(chance), chance)

    async def _association(self, chance: Random) -> None:
        wire = await Wire.open(self.dicom_port)
        answers = 0
        try:
            stream = mutate.association(self.streams, chance)
            with contextlib.suppress(OSError):
                await wire.send(stream)
                if chance.random() < 0.9:
                    wire.writer.write_eof()
                    while (await wire.pdu())[0]:
                        answers += 1
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.2):
                            while (await wire.pdu())[0]:
                                answers += 1
        finally:
            wire.writer.transport.abort()
        self.heard["associations that were answered" if answers else "associations that were cut off"] += 1

    def _instances(self, number: int, chance: Random) -> tuple[bytes, bytes]:
        """Header and body of a STOW-RS request."""
        files = []
        for _ in range(chance.choice((1, 1, 2, 3))):
            sample = chance.choice(self.samples)
            sop, data = sample.numbered(number)
            file = encode_file_meta(
                sop_class_uid=sample.header.sop_class_uid,
                sop_instance_uid=sop,
                transfer_syntax_uid=sample.syntax,
            ) + (mutate.data_set(data, sample.syntax, chance) if chance.random() < 0.5 else data)
            files.append(mutate.some_bytes(file, chance) if chance.random() < 0.3 else file)
        body = multipart(*files)
        if chance.random() < 0.6:
            body = mutate.body(body, chance)
        return head(len(body)), body

    async def _http(self, number: int, sound: bytes, body: bytes, chance: Random) -> None:
        request = sound
        if chance.random() < 0.2:
            length = chance.choice((0, 1, len(body) + 1, 1 << 32))
            request = re.sub(rb"(?<=Content-Length: )\d+", str(length).encode(), sound)
        if chance.random() < 0.1:
            request = mutate.some_bytes(request, chance)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
        line = b""
        with contextlib.suppress(OSError):
            writer.write(request + body)
            await writer.drain()
            if request != sound:
                # Else it would wait for what never comes; a half-closed connection is not answered.
                writer.write_eof()
            line = await reader.readline()
            await reader.read()
        writer.transport.abort()
        status = line[9:12].decode("latin-1") or "no answer"
        self.heard[f"HTTP {status}"] += 1
        # 503 would say that the store or the bus failed, 500 that we did.
        if status.startswith("5"):
            self.wrong.append(f"case {number} of seed {self.seed}: HTTP {status}")


def _references(chance: Random) -> tuple[bytes, bytes]:
    """Header and body of a request for storage commitment (PS3.18 section 13.4)."""
    kind, body = chance.choice((("application/dicom+json", _JSON), ("application/dicom+xml", _XML)))
    if chance.random() < 0.9:
        body = mutate.some_bytes(body, chance)
    stow = head(len(body), kind, Accept="application/dicom+json")
    path = f"commitment-requests/1.2.826.0.1.3680043.8.498.{chance.randrange(1, 1 << 40)}"
    return stow.replace(b"studies", path.encode(), 1), body


_JSON = json.dumps(
    {
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [CT]},
                    "00081155": {"vr": "UI", "Value": [f"1.2.3.{number}"]},
                }
                for number in range(3)
            ],
        }
    }
).encode()
_XML = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b'<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
    b'<DicomAttribute tag="00081199" vr="SQ"><Item number="1">'
    b'<DicomAttribute tag="00081150" vr="UI"><Value number="1">1.2.840.10008.5.1.4.1.1.2</Value>'
    b'</DicomAttribute><DicomAttribute tag="00081155" vr="UI"><Value number="1">1.2.3</Value>'
    b"</DicomAttribute></Item></DicomAttribute></NativeDicomModel>"
)


class Sender:
    """An association that stays open from case to case, and is opened again where one ended it."""

    def __init__(self, fuzz: Fuzz, stack: contextlib.AsyncExitStack) -> None:
        self._port = fuzz.dicom_port
        self._contexts: dict[tuple[str, str], int] = {}
        for sample in fuzz.samples:
            context = (sample.header.sop_class_uid, sample.syntax)
            self._contexts.setdefault(context, 2 * len(self._contexts) + 1)
        self._wire: Wire | None = None
        stack.push_async_callback(self._close)

    async def store(self, sample: Sample, sop: str, data: bytes) -> int:
        if self._wire is None:
            self._wire = await Wire.open(self._port)
            await self._wire.send(associate_rq(*self._contexts))
            kind, _ = await self._wire.pdu()
            assert kind == PduType.ASSOCIATE_AC
        context = self._contexts[sample.header.sop_class_uid, sample.syntax]
        command = command_set(1, sop_class=sample.header.sop_class_uid, sop_instance=sop, data_set=True)
        await self._wire.send(p_data(context, command, command=True) + p_data(context, data, command=False))
        return await self._wire.status()

    async def _close(self) -> None:
        if self._wire is not None:
            await self._wire.close()
