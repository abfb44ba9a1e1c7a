"""No space: the sender is told, nothing acknowledged is lost, and it goes on when space is back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks import retrieve
from benchmarks.corpus import Corpus, Generator
from benchmarks.dimse import Association, AssociationError, DataSet
from benchmarks.embedded import Embedded
from tests.faults import judge

from isocenter.common.keys import SiteKeys

OUT_OF_RESOURCES = 0xA700
"""Refused: Out of Resources (PS3.4 annex B.2.3)."""
WITHOUT_MARK = {"ISOCENTER_INGEST_MIN_FREE_BYTES": "0"}
"""Only what is really full refuses here; the mark that keeps a disk from it is tested in test_watermarks."""
SMALL = Corpus("small", 0, 64, 64)
CT = Corpus("ct", 0, 512, 512)
LARGE = Corpus("large", 0, 512, 512, frames=8)
MEGABYTE = 1 << 20

Mount = Callable[[Path, int], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a file system of so many bytes, or gives the one that is there another size."""
    mounted: list[Path] = []

    def make(path: Path, size: int) -> None:
        options = f"size={size},mode=0700"
        if path in mounted:
            options = f"remount,{options}"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("NOT RUN: this user may not mount a small file system to fill")
        if path not in mounted:
            mounted.append(path)

    yield make
    for path in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def send(platform: Embedded, instances: list[DataSet]) -> list[int]:
    """The status of each; 0xFFFF where the association ended instead."""
    statuses = []
    for instance in instances:
        try:
            with Association(
                ("127.0.0.1", platform.dicom_port), [instance.sop_class_uid], called=platform.ae_title
            ) as association:
                statuses.append(association.store(instance))
        except AssociationError:
            statuses.append(0xFFFF)
    return statuses


def digests(instances: list[DataSet]) -> dict[str, str]:
    return {
        instance.sop_instance_uid: hashlib.sha256(b"".join(instance.parts)).hexdigest()
        for instance in instances
    }


def served(platform: Embedded, study: str, at_least: int) -> dict[str, str]:
    found = platform.instances(f"/dicom-web/studies/{study}", at_least=at_least)
    return {retrieve.sop_instance_uid(part): retrieve.digest(part) for part in found}


def assert_sound(platform: Embedded, study: str, acknowledged: list[DataSet]) -> None:
    """On a stopped platform: whole objects, every acknowledged one among them, nothing half written."""
    keys = SiteKeys.load_or_create(platform.data_dir / "keys" / "site.key")
    held = asyncio.run(judge.read_store(platform.data_dir))
    heard = judge.Heard({study: digests(acknowledged)}, len(acknowledged))
    assert [] == judge.lost(heard, held, keys)
    assert [] == held.corrupt


@pytest.mark.slow
def test_a_full_store_refuses_and_recovers(tmp_path: Path, mount: Mount) -> None:
    platform = Embedded(tmp_path / "site", WITHOUT_MARK)
    platform.data_dir.mkdir(mode=0o700)
    mount(platform.data_dir / "objects", 6 * MEGABYTE)
    generator = Generator(1)
    instances = list(generator.study(CT, 1, 24))
    with platform:
        first = send(platform, instances)
        accepted = [instance for instance, status in zip(instances, first, strict=True) if status == 0]
        assert {0, OUT_OF_RESOURCES} == set(first)
        assert digests(accepted) == served(platform, generator.study_uid(1), len(accepted))
        assert [] == judge.staged_leftovers(platform.data_dir)

        mount(platform.data_dir / "objects", 64 * MEGABYTE)
        _until(lambda: send(platform, instances[-1:]) == [0])
        assert [0] * len(instances) == send(platform, instances)
        assert digests(instances) == served(platform, generator.study_uid(1), len(instances))
        assert 0 == platform.stop()
        assert_sound(platform, generator.study_uid(1), instances)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("acknowledge", "unannounced"), [("published", 0), ("stored", 7)], ids=["published", "stored"]
)
def test_a_full_event_log_refuses_and_recovers(
    tmp_path: Path, mount: Mount, acknowledge: str, unannounced: int
) -> None:
    """Log, index and spans share the full disk; the store has room. No event, no Success; or a few of them,
    whose events come when there is room.
    """
    settings = {
        **WITHOUT_MARK,
        "ISOCENTER_INGEST_ACKNOWLEDGE": acknowledge,
        "ISOCENTER_INGEST_MAX_UNANNOUNCED": str(max(1, unannounced)),
    }
    platform = Embedded(tmp_path / "site", settings)
    mount(platform.data_dir, 16 * MEGABYTE)
    mount(platform.data_dir / "objects", 64 * MEGABYTE)
    generator = Generator(2)
    before = list(generator.study(SMALL, 1, 20))
    during = list(generator.study(SMALL, 1, 40, start=20))
    with platform:
        assert [0] * len(before) == send(platform, before)
        served(platform, generator.study_uid(1), len(before))
        filler = platform.data_dir / "filler"
        _fill(filler)
        statuses = send(platform, during)
        accepted = [instance for instance, status in zip(during, statuses, strict=True) if status == 0]
        assert OUT_OF_RESOURCES in statuses
        assert {0, OUT_OF_RESOURCES} >= set(statuses)
        assert OUT_OF_RESOURCES == statuses[-1]
        assert unannounced <= len(accepted)

        filler.unlink()
        _until(lambda: send(platform, during[-1:]) == [0])
        assert platform.running
        known = digests([*before, *accepted, during[-1]])
        found = served(platform, generator.study_uid(1), len(known))
        assert known.items() <= found.items()

        assert [0] * len(during) == send(platform, during)
        everything = digests([*before, *during])
        assert everything == served(platform, generator.study_uid(1), len(everything))
        assert 0 == platform.stop()
        assert_sound(platform, generator.study_uid(1), [*before, *during])


@pytest.mark.slow
def test_a_file_size_limit_refuses_what_does_not_fit_and_nothing_else(tmp_path: Path) -> None:
    """As on a file system whose quota or largest file is in the way; needs no privilege to test."""
    generator = Generator(3)
    small = list(generator.study(SMALL, 1, 5))
    large = [generator.instance(LARGE, 2, 0)]
    with Embedded(tmp_path / "site") as platform:
        _, hard = resource.prlimit(platform.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(platform.pid, resource.RLIMIT_FSIZE, (3 * MEGABYTE, hard))
        assert [OUT_OF_RESOURCES] == send(platform, large)
        assert [0] * len(small) == send(platform, small)

        resource.prlimit(platform.pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert [0] == send(platform, large)
        assert digests(large) == served(platform, generator.study_uid(2), 1)
        assert digests(small) == served(platform, generator.study_uid(1), len(small))
        assert [] == judge.staged_leftovers(platform.data_dir)


def _fill(path: Path) -> None:
    """Takes every byte that is left on the file system."""
    with path.open("wb") as file:
        for size in (MEGABYTE, 4096, 1):
            try:
                while True:
                    os.write(file.fileno(), b"\0" * size)
            except OSError:
                continue


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not recover in time"
        time.sleep(0.2)
