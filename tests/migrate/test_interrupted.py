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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Driver:
    """Runs migrations in processes of their own."""

    process: subprocess.Popen[str]
    source: Side
    target: Side

    def run(
        self,
        *,
        kill_at: tuple[str, int] | None = None,
        kill_after: float | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        wish = {
            "source": str(self.source.engines.platform.data_dir),
            "target": str(self.target.engines.platform.data_dir),
            "kill_at": kill_at,
            "kill_after": kill_after,
            "max_bytes": max_bytes,
        }
        self.process.stdin.write(json.dumps(wish) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="session")
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.migrate.driver"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.fixture
def driver(process: subprocess.Popen[str], source: Side, target: Side) -> Driver:
    return Driver(process, source, target)


async def same(source: Side, target: Side) -> bool:
    return (
        await payloads(source) == await payloads(target)
        and await dump(source) == await dump(target)
        and await history(source) == await history(target)
    )


MOMENTS = (
    ("drain", 1),
    ("plan", 1),
    ("plan", 9),
    *(("objects", number) for number in (1, 2, 7, 16)),
    *(("events", number) for number in (1, 12, 13, 14, 20, 30)),
    *(("index", number) for number in (1, 2, 3)),
    ("compare-objects", 1),
    ("compare-index", 2),
    ("compare-events", 9),
)


async def test_a_migration_that_is_killed_again_and_again_ends_the_same(
    source: Side, target: Side, driver: Driver
) -> None:
    """All on one target: each run goes on where the one before died, and dies a little later."""
    async with sending(source) as sender:
        await sender.send(STUDIES[-1], numbers=range(60, 63))  # work in hand: the first run dies over it
    for moment in MOMENTS:
        answer = driver.run(kill_at=moment)
        assert (KILLED, moment[0]) == (answer["status"], answer["step"]), moment

    assert 0 == driver.run()["status"]
    assert await same(source, target)


async def test_a_kill_at_any_moment_ends_the_same(source: Side, target: Side, driver: Driver) -> None:
    rng = random.Random(SEED)
    killed = 0
    while driver.run(kill_after=rng.uniform(0.02, 0.5))["status"] == KILLED:
        killed += 1
        if killed == 12:
            assert 0 == driver.run()["status"], SEED
            break

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
    assert KILLED == driver.run(kill_at=("objects", plan.objects // 2))["status"]
    before = await payloads(target)
    assert 0 < len(before) < plan.objects

    report = await Migration(source, target).run()

    assert report.copied is not None
    assert plan.objects - len(before) == report.copied.objects
