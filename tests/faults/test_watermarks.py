"""The mark of free space: instances are refused while there is room for all that the platform still does."""

from __future__ import annotations

import os
from pathlib import Path

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
