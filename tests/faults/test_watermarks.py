"""The mark of free space: instances are refused while there is room for all that the platform still does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock

import httpx
import pytest
from benchmarks.corpus import Generator
from benchmarks.dimse import DataSet
from benchmarks.embedded import Embedded
from tests.faults.test_disk_full import (
    CT,
    MEGABYTE,
    OUT_OF_RESOURCES,
    Mount,
    _until,
    assert_sound,
    digests,
    mount,
    send,
    served,
)

from isocenter.ingest import watermarks
from isocenter.ingest.watermarks import Marks, Watermarks

__all__ = ["mount"]

DISK, REFUSE, RESUME = 96 * MEGABYTE, 48 * MEGABYTE, 56 * MEGABYTE


def free(path: Path) -> int:
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


@pytest.mark.slow
def test_senders_are_told_in_time_and_let_in_again(tmp_path: Path, mount: Mount) -> None:
    settings = {
        "ISOCENTER_INGEST_MIN_FREE_BYTES": str(REFUSE),
        "ISOCENTER_INGEST_RESUME_FREE_BYTES": str(RESUME),
    }
    platform = Embedded(tmp_path / "site", settings)
    mount(platform.data_dir, DISK)
    generator = Generator(5)
    instances = list(generator.study(CT, 1, 60))
    with platform:
        accepted: list[DataSet] = []
        ballast = platform.data_dir / "ballast"
        accepted += instances[:10]
        assert [0] * 10 == send(platform, accepted)

        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free(platform.data_dir) - REFUSE + 4 * MEGABYTE)
        _until(lambda: send(platform, instances[:1]) == [OUT_OF_RESOURCES])
        assert [OUT_OF_RESOURCES] * 40 == send(platform, instances[10:50])
        assert free(platform.data_dir) > REFUSE - 16 * MEGABYTE, "refusing costs space"
        answer = httpx.post(
            f"{platform.dicom_web}/studies",
            content=bytes(MEGABYTE),
            headers={"Content-Type": "application/dicom"},
            timeout=30,
        )
        assert (503, "30") == (answer.status_code, answer.headers["retry-after"])
        # All that was acknowledged is found and read meanwhile.
        assert digests(accepted) == served(platform, generator.study_uid(1), len(accepted))

        ballast.unlink()
        _until(lambda: send(platform, instances[10:11]) == [0])
        accepted.append(instances[10])
        assert digests(accepted) == served(platform, generator.study_uid(1), len(accepted))
        assert 0 == platform.stop()
        assert_sound(platform, generator.study_uid(1), accepted)


async def test_a_store_that_hangs_shuts_the_door_and_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check cannot be cancelled: a thread waits for the disk."""
    monkeypatch.setattr(watermarks, "STORE_SECONDS", 0.05)
    answer = asyncio.Event()
    ports = MagicMock(disks=())
    asked: list[int] = []

    async def check() -> None:
        asked.append(1)
        while not answer.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await answer.wait()

    ports.store.check = check
    ports.bus.health = AsyncMock(return_value=[])
    gate = Watermarks(ports, Marks(0, 0), may_announce_later=lambda: True, signals=MagicMock())
    gate._store_doubt = True
    async with asyncio.timeout(5):
        await gate.look()
        assert gate.refusal is not None
        await gate.look()
        assert [1] == asked, "another one would hang as well"
        answer.set()
        await gate.look()
    assert not gate._short
    await gate.stop()
