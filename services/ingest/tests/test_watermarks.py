"""Full disks, a full store and a bus that stands still: refused before a byte is kept, taken up by itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from isocenter.common.errors import BusUnavailable, RejectReason, StoreFull, StoreUnavailable
from isocenter.common.service import Health
from isocenter.common.serving import serve_http
from isocenter.common.settings import PlatformSettings
from isocenter.common.telemetry import Gauge, setup
from isocenter.ingest import watermarks
from isocenter.ingest.receiver import InstanceReceiver
from isocenter.ingest.testing import Wire, command_set, p_data, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, Scu, World

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
OUT_OF_RESOURCES = 0xA700
MIB = 1 << 20


class Disk:
    """How much is free, as the watermarks see it."""

    def __init__(self) -> None:
        self.free = 100 * MIB

    def __call__(self, disks: object) -> int:
        return self.free


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermarks, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watermarks, "BUS_SECONDS", 0.01)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(watermarks, "free_bytes", disk)
    return disk


@pytest.fixture
async def marked(world: World, disk: Disk) -> AsyncIterator[IngestService]:
    """Refuses below 10 MiB, takes again from 20 MiB on."""
    telemetry = setup("ingest", PlatformSettings(log_level="error", spans_kept=0))
    world.ports = replace(world.ports, disks=(world.root,), telemetry=telemetry)
    service = world.service(min_free_bytes=10 * MIB, resume_free_bytes=20 * MIB)
    await service.start()
    yield service
    await service.stop()


def is_open(service: IngestService) -> bool:
    return service.intake.watermarks.refusal is None


def refusing(service: IngestService, reason: str) -> float:
    return service.intake.ports.telemetry.metrics.value(Gauge.INGEST_REFUSING, reason=reason)


async def is_ready(service: IngestService) -> bool:
    return all(check.ok for check in await service.health())


async def test_below_the_mark_nothing_is_taken_until_there_is_clearly_more(
    marked: IngestService, disk: Disk, world: World, dicom: Dicom, scu: type[Scu], tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.dcm" for number in range(3)]
    for file in files:
        file.write_bytes(dicom.file(dicom.instance()))
    sender = scu(marked.dicom_port)
    assert await sender.store(files[0]) == [0]

    disk.free = 9 * MIB
    await until(lambda: not is_open(marked))
    assert await sender.store(*files[1:], files[1]) == [OUT_OF_RESOURCES] * 3
    assert await sender.echo() == 0
    assert len(await world.objects()) == 1
    assert world.staged() == []
    # The first refusal of an association is evidence; more of them would only fill the disk.
    assert [event.reason for event in world.bus.rejected] == [RejectReason.OUT_OF_RESOURCES]
    assert refusing(marked, "disk") == 1
    assert not await is_ready(marked)

    disk.free = 19 * MIB
    looks = disk_looks(marked)
    await until(lambda: looks() >= 2)
    assert not is_open(marked), "between the marks nothing changes"

    disk.free = 20 * MIB
    await until(lambda: is_open(marked))
    assert await sender.store(*files[1:]) == [0, 0]
    assert refusing(marked, "disk") == 0
    assert await is_ready(marked)


async def test_an_instance_in_hand_is_finished(
    marked: IngestService, disk: Disk, world: World, dicom: Dicom, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = dicom.instance(pixels=6_000_000)
    data = dicom.data_set(dicom.file(instance))
    begun = watch_instances(monkeypatch)
    wire = await Wire.open(marked.dicom_port)
    await wire.associate((CT, EXPLICIT))
    request = command_set(1, sop_class=CT, sop_instance=str(instance.SOPInstanceUID), data_set=True)
    rest = p_data(1, data, command=False, piece=8186)
    await wire.send(p_data(1, request, command=True) + rest[:4_000_000])
    await until(lambda: begun)
    disk.free = 0
    await until(lambda: not is_open(marked))
    await wire.send(rest[4_000_000:])
    assert await wire.status() == 0
    await wire.close()
    assert len(await world.objects()) == 1


async def test_what_would_not_fit_is_refused_by_its_length(marked: IngestService, disk: Disk) -> None:
    gate = marked.intake.watermarks
    assert gate.fits(90 * MIB)
    assert not gate.fits(91 * MIB)


async def test_http_is_refused_before_the_body_is_read(
    marked: IngestService, disk: Disk, world: World
) -> None:
    disk.free = 0
    await until(lambda: not is_open(marked))
    assert marked.asgi is not None
    async with serve_http(marked.asgi, "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /dicom-web/studies HTTP/1.1\r\nHost: pacs.example\r\n"
            b"Content-Type: application/dicom\r\nContent-Length: 100000000\r\n\r\n" + bytes(1000)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        # A client that does not listen while it sends hears it, too.
        for _ in range(20):
            writer.write(bytes(MIB))
            await writer.drain()
        assert json.loads(await reader.readexactly(_length(head)))["status"] == 503
        writer.close()
        await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 30\r\n" in head.lower()
    assert b"content-type: application/problem+json" in head.lower()
    assert not await world.objects()


async def test_a_usual_http_client_hears_the_refusal(marked: IngestService, disk: Disk) -> None:
    disk.free = 0
    await until(lambda: not is_open(marked))
    assert marked.asgi is not None
    async with serve_http(marked.asgi, "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        response = await client.post(
            f"http://127.0.0.1:{port}/dicom-web/studies",
            content=bytes(20 * MIB),
            headers={"Content-Type": "application/dicom"},
        )
    assert (response.status_code, response.headers["retry-after"]) == (503, "30")


async def test_a_store_that_says_it_is_full_is_asked_before_the_next_instance_is_read(
    world: World, dicom: Dicom, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.service()
    await service.start()
    full = True

    async def check() -> None:
        if full:
            raise StoreUnavailable("still full")

    monkeypatch.setattr(world.store, "check", check)
    gate = service.intake.watermarks
    gate.met(StoreFull("no space"))
    await until(lambda: not is_open(service))
    full = False
    await until(lambda: is_open(service))
    # An instance that was too large alone is no reason to refuse others.
    gate.met(StoreFull("no space for this one"))
    assert is_open(service)
    await until(lambda: not gate._store_doubt)
    assert is_open(service)
    await service.stop()


async def test_a_bus_that_does_not_answer_shuts_the_door_and_one_lost_publish_does_not(
    world: World, dicom: Dicom, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.service()
    await service.start()
    answers = True

    async def health() -> list[Health]:
        return [Health("bus", ok=answers), Health("bus.ingest.puller", ok=False)]

    monkeypatch.setattr(world.bus, "health", health)
    gate = service.intake.watermarks
    gate.met(BusUnavailable("a slow broker"))
    await until(lambda: not gate._bus_doubts)
    assert is_open(service)

    answers = False
    await until(lambda: not is_open(service))
    answers = True
    await until(lambda: is_open(service))
    await service.stop()


async def test_while_events_may_come_later_a_silent_bus_refuses_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.service(acknowledge="stored", max_unannounced=5)
    await service.start()
    world.bus.running = False
    gate = service.intake.watermarks
    await until(lambda: watermarks.Short.BUS in gate._short)
    assert is_open(service)
    service.intake.backlog.count = 5
    assert not is_open(service)
    service.intake.backlog.count = 0
    assert is_open(service)
    await service.stop()


def test_the_fullest_disk_counts_and_one_that_cannot_be_asked_does_not(tmp_path: Path) -> None:
    real = os.statvfs(tmp_path)
    assert watermarks.free_bytes([]) is None
    assert watermarks.free_bytes([tmp_path / "absent"]) is None
    found = watermarks.free_bytes([tmp_path / "absent", tmp_path])
    assert found is not None
    assert 0 < found <= real.f_blocks * real.f_frsize


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    mount = shutil.which("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=32m", "isocenter-test", folder], check=False, capture_output=True
    )
    if not done or done.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_real_disk_that_fills_up(
    world: World, small_disk: Path, dicom: Dicom, scu: type[Scu], tmp_path: Path
) -> None:
    world.ports = replace(world.ports, disks=(small_disk,))
    service = world.service(min_free_bytes=8 * MIB, resume_free_bytes=16 * MIB)
    await service.start()
    file = tmp_path / "one.dcm"
    file.write_bytes(dicom.file(dicom.instance()))
    sender = scu(service.dicom_port)
    assert await sender.store(file) == [0]

    ballast = small_disk / "ballast"
    await asyncio.to_thread(ballast.write_bytes, bytes(26 * MIB))
    await until(lambda: not is_open(service))
    assert await sender.store(file) == [OUT_OF_RESOURCES]

    os.truncate(ballast, 12 * MIB)
    await until(lambda: is_open(service))
    assert await sender.store(file) == [0]
    await service.stop()


def disk_looks(service: IngestService) -> Any:
    """Counts looks from now on."""
    gate, count = service.intake.watermarks, 0
    inner = gate.look

    async def look() -> None:
        nonlocal count
        await inner()
        count += 1

    gate.look = look  # type: ignore[method-assign]
    return lambda: count


def watch_instances(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Receivers that have taken their first bytes."""
    begun: list[object] = []
    inner = InstanceReceiver.write

    async def write(self: InstanceReceiver, data: bytes) -> None:
        await inner(self, data)
        begun.append(self)

    monkeypatch.setattr(InstanceReceiver, "write", write)
    return begun


def _length(head: bytes) -> int:
    [line] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(line.split(b":")[1])
