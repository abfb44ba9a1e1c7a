"""`kill -9` anywhere, and a disk that fills up: the next run goes on, and the result is the same."""

from __future__ import annotations

import os
import random
import secrets

from tests.migrate.building import SLOW, STUDIES, dump, history, index_all, payloads, sending
from tests.migrate.killing import KILLED, Driver

from isocenter.cli.migration.engine import Migration
from isocenter.cli.migration.sides import Side
from isocenter.indexer.testing import dataset

SEED = int(os.environ.get("ISOCENTER_FAULT_SEED", "0")) or secrets.randbits(32)


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
