"""`kill -9` anywhere, and a disk that fills up: the next run goes on, and the result is the same."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.migrate.building import SLOW, STUDIES, dump, history, index_all, payloads, sending

from isocenter.cli.migration.engine import Migration
from isocenter.cli.migration.sides import Side
from isocenter.indexer.testing import dataset

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("ISOCENTER_FAULT_SEED", "0")) or secrets.randbits(32)
KILLED = -signal.SIGKILL


class Driver:
    """Runs migrations in processes of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *, kill_at: int | None = None, max_bytes: int | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kill_at": kill_at, "max_bytes": max_bytes}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@pytest.fixture
def driver(source: Side, target: Side) -> Iterator[Driver]:
    folders = [str(side.engines.platform.data_dir) for side in (source, target)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.migrate.driver", *folders],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        try:
            yield Driver(process)
        finally:
            process.kill()


async def same(source: Side, target: Side) -> bool:
    return (
        await payloads(source) == await payloads(target)
        and await dump(source) == await dump(target)
        and await history(source) == await history(target)
    )


async def test_a_migration_that_is_killed_again_and_again_ends_the_same(
    source: Side, target: Side, driver: Driver
) -> None:
    """Each run is killed a little later than the one before, at a moment of its own choosing."""
    async with sending(source) as sender:
        await sender.send(STUDIES[-1], numbers=range(60, 63))  # work in hand: the first runs drain it
    rng = random.Random(SEED)
    killed: list[str] = []
    kill_at = 1
    while (answer := driver.run(kill_at=kill_at))["status"] == KILLED:
        killed.append(answer["step"])
        kill_at += rng.randint(3, 12)
        assert len(killed) < 100

    assert 0 == answer["status"], (SEED, answer)
    steps = set(killed)
    assert {"plan", "objects", "events", "index", "compare-objects"} <= steps, (SEED, killed)
    assert await same(source, target), SEED


async def test_a_full_disk_is_said_and_the_next_run_goes_on(
    source: Side, target: Side, driver: Driver
) -> None:
    """No file may become as large as one object of the source: some objects are copied, that one is not."""
    async with sending(source) as sender:
        large = dataset(study=STUDIES[-1], number=70)
        large.Rows = large.Columns = 1024
        large.PixelData = secrets.token_bytes(2 << 20)
        await sender.announce(STUDIES[-1], [await sender.site.put(large)])
    await index_all(source, SLOW, receiving=1)

    assert 3 == driver.run(max_bytes=1 << 20)["status"]
    copied = await payloads(target)
    assert max(len(each) for each in copied.values()) < 1 << 20

    assert 0 == driver.run()["status"]
    assert await same(source, target)


async def test_what_is_moved_is_not_moved_again(source: Side, target: Side, driver: Driver) -> None:
    plan = await Migration(source, target).plan()
    assert KILLED == driver.run(kill_at=plan.objects + plan.objects // 2)["status"]
    before = await payloads(target)
    assert 0 < len(before) < plan.objects

    report = await Migration(source, target).run()

    assert report.copied is not None
    assert plan.objects - len(before) == report.copied.objects
