"""The log file itself: durability, group commit, retention, the lock, a full disk."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]  # ships no py.typed marker
from faststream.kafka.exceptions import BatchBufferOverflowException

from isocenter.common.bus.embedded import EmbeddedLog
from isocenter.common.bus.embedded.log import DELETE_CHUNK, MAX_RECORD_BYTES, TAIL_RECORDS, Entry
from isocenter.common.bus.embedded.producer import MAX_BATCH_BYTES, EmbeddedProducer
from isocenter.common.bus.embedded.schema import open_reader
from isocenter.common.bus.kafka import MessageSizeTooLargeError, TopicPartition, UnknownTopicOrPartitionError
from isocenter.common.clock import ManualClock
from isocenter.common.errors import BusUnavailable, Misconfigured

Until = Callable[..., Awaitable[None]]
T0 = TopicPartition("t", 0)
DAY = timedelta(days=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.sqlite"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def log(path: Path, clock: ManualClock) -> AsyncIterator[EmbeddedLog]:
    opened = EmbeddedLog(path, clock=clock)
    await opened.create_topic("t", 2, DAY)
    yield opened
    opened.close()


def entry(log: EmbeddedLog, value: bytes, partition: TopicPartition = T0) -> Entry:
    return Entry(partition, log.now_ms(), b"k", value, (("h", b"\xff"), ("null", None)))


async def fill(log: EmbeddedLog, count: int, partition: TopicPartition = T0) -> None:
    await asyncio.gather(*(log.append(entry(log, str(n).encode(), partition)) for n in range(count)))


async def values(log: EmbeddedLog, offset: int = 0) -> list[bytes | None]:
    return [record.value for record in await log.read(T0, offset, 10_000)]


async def test_a_record_comes_back_byte_for_byte(log: EmbeddedLog, path: Path) -> None:
    placed = await log.append(Entry(T0, 1, None, None, (("a", b"\x00\xff"), ("a", None), ("b", b""))))
    log.close()
    again = EmbeddedLog(path)

    [record] = await again.read(T0, 0, 10)
    again.close()

    assert ("t", 0, 0) == (placed.topic, placed.partition, placed.offset)
    assert (None, None, 1) == (record.key, record.value, record.timestamp)
    assert (("a", b"\x00\xff"), ("a", None), ("b", b"")) == record.headers


async def test_what_waits_together_becomes_durable_together(log: EmbeddedLog) -> None:
    await log.flush()
    before = log.writer.transactions

    await fill(log, 500)

    assert log.writer.transactions - before <= 3
    assert [str(n).encode() for n in range(500)] == await values(log)


async def test_only_the_newest_offset_of_a_burst_is_written(log: EmbeddedLog) -> None:
    await log.flush()
    before = log.writer.transactions
    for offset in range(1000):
        log.commit("g", {T0: offset})
    await log.flush()

    assert log.writer.transactions - before <= 3
    assert 999 == log.committed("g", T0)


async def test_reading_goes_on_where_memory_ends(log: EmbeddedLog) -> None:
    await fill(log, TAIL_RECORDS + 200)

    assert [b"0", b"1"] == [record.value for record in await log.read(T0, 0, 2)]
    assert [b"1150"] == [record.value for record in await log.read(T0, 1150, 1)]
    assert [] == await log.read(T0, TAIL_RECORDS + 200, 10)


async def test_offsets_and_subscriptions_are_there_after_a_restart(log: EmbeddedLog, path: Path) -> None:
    await fill(log, 3)
    await log.subscribe("g", ["t"])
    log.commit("g", {T0: 2})
    log.close()

    again = EmbeddedLog(path)
    state = (again.committed("g", T0), again.end_offset(T0), again.groups_of("t"), again.partitions)
    again.close()

    assert (2, 3, {"g"}, {"t": 2}) == state


async def test_a_topic_keeps_its_number_of_partitions(log: EmbeddedLog) -> None:
    """Another number would send a study's next event elsewhere."""
    assert not await log.create_topic("t", 7, DAY)

    assert 2 == log.partitions["t"]
    assert 2 == len(log.partitions_of("t"))


@pytest.mark.parametrize("key", [b"", b"a", b"ab", b"abc", b"a" * 26, bytes(range(256))])
async def test_keys_go_to_the_partition_that_kafka_clients_choose(log: EmbeddedLog, key: bytes) -> None:
    await log.create_topic("twelve", 12)
    producer, every = EmbeddedProducer(log), list(range(12))

    placed = await (await producer.send("twelve", value=b"v", key=key))

    assert DefaultPartitioner()(key, every, every) == placed.partition


async def test_an_unknown_topic_and_an_oversized_record_are_refused(log: EmbeddedLog) -> None:
    with pytest.raises(UnknownTopicOrPartitionError):
        await log.append(Entry(TopicPartition("t", 2), 0, None, b"", ()))
    with pytest.raises(MessageSizeTooLargeError):
        await log.append(Entry(T0, 0, None, b"x" * (MAX_RECORD_BYTES + 1), ()))
    assert [] == await values(log)


async def test_a_batch_that_is_full_says_so(embedded: Any) -> None:
    topic, broker = await embedded.topic(), embedded.raw()
    await broker.connect()
    third = "x" * (MAX_BATCH_BYTES // 3)

    with pytest.raises(BatchBufferOverflowException):
        await broker.publish_batch(third, third, third, topic=topic)

    assert 0 == embedded.transport.open().log.end_offset(TopicPartition(topic, 0))


# retention --------------------------------------------------------------------------------------------------


async def test_old_records_below_every_group_are_deleted(log: EmbeddedLog, clock: ManualClock) -> None:
    await fill(log, 10)
    await log.subscribe("slow", ["t"])
    await log.subscribe("fast", ["t"])
    log.commit("slow", {T0: 4})
    log.commit("fast", {T0: 10})
    clock.advance(DAY.total_seconds() + 1)

    assert 4 == await log.apply_retention()
    assert 4 == log.first_offset(T0)
    assert [str(n).encode() for n in range(4, 10)] == [r.value for r in await log.read(T0, 4, 100)]


async def test_young_records_are_kept_whoever_has_read_them(log: EmbeddedLog, clock: ManualClock) -> None:
    await fill(log, 5)
    clock.advance(DAY.total_seconds() + 1)
    await fill(log, 5)

    assert 5 == await log.apply_retention()
    assert 5 == log.first_offset(T0)


async def test_a_group_that_never_committed_holds_everything(log: EmbeddedLog, clock: ManualClock) -> None:
    await log.subscribe("new", ["t"])
    await fill(log, 5)
    clock.advance(DAY.total_seconds() + 1)
    assert 0 == await log.apply_retention()

    await log.forget_group("new")
    assert 5 == await log.apply_retention()


async def test_a_topic_without_retention_keeps_everything(log: EmbeddedLog, clock: ManualClock) -> None:
    await log.create_topic("forever", 1)
    await fill(log, 5, TopicPartition("forever", 0))
    clock.advance(1e9)

    assert 0 == await log.apply_retention()


async def test_offsets_are_never_used_again(log: EmbeddedLog, path: Path, clock: ManualClock) -> None:
    """The end of a partition must survive the deletion of everything in it."""
    await fill(log, 3)
    clock.advance(DAY.total_seconds() + 1)
    assert 3 == await log.apply_retention()
    log.close()

    again = EmbeddedLog(path, clock=clock)
    placed = await again.append(entry(again, b"next"))
    again.close()

    assert 3 == placed.offset


async def test_many_old_records_go_in_small_transactions(log: EmbeddedLog, clock: ManualClock) -> None:
    await fill(log, DELETE_CHUNK * 2 + 10)
    clock.advance(DAY.total_seconds() + 1)
    before = log.writer.transactions

    assert DELETE_CHUNK * 2 + 10 == await log.apply_retention()
    assert 3 <= log.writer.transactions - before


async def test_a_consumer_behind_the_first_offset_starts_there(embedded: Any, until: Until) -> None:
    owned = embedded.transport.open()
    plain = Entry(T0, 0, b"k", b"old", ())
    await owned.log.create_topic("t", 1, timedelta(0))
    await asyncio.gather(*(owned.log.append(plain) for _ in range(5)))
    await asyncio.sleep(0.01)
    await owned.log.apply_retention()
    await owned.log.append(dataclasses.replace(plain, value=b"new"))
    broker, seen = embedded.raw(), list[bytes]()

    async def handle(body: bytes) -> None:
        seen.append(body)

    broker.subscriber("t", group_id="late", auto_offset_reset="earliest")(handle)
    await broker.start()
    await until(lambda: seen)

    assert [b"new"] == seen


# one owner --------------------------------------------------------------------------------------------------


async def test_a_second_process_is_told_who_owns_the_log(log: EmbeddedLog, path: Path) -> None:
    opening = f"""
from pathlib import Path
from isocenter.common.bus.embedded import EmbeddedLog
from isocenter.common.errors import Misconfigured
try:
    EmbeddedLog(Path({str(path)!r}))
except Misconfigured as error:
    print(error.ids["pid"])
"""
    run = subprocess.run
    found = await asyncio.to_thread(run, [sys.executable, "-c", opening], stdout=subprocess.PIPE, check=True)

    assert str(os.getpid()).encode() == found.stdout.strip()


async def test_the_lock_goes_with_its_owner(log: EmbeddedLog, path: Path) -> None:
    with pytest.raises(Misconfigured):
        EmbeddedLog(path)
    log.close()

    EmbeddedLog(path).close()


async def test_a_log_of_a_newer_version_is_refused_and_not_locked(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()

    for _ in range(2):
        with pytest.raises(Misconfigured, match="newer version"):
            EmbeddedLog(path)


# a full disk ------------------------------------------------------------------------------------------------


async def fill_up(log: EmbeddedLog) -> int:
    """Appends until the log is full; returns how many records were acknowledged."""
    for acknowledged in itertools.count():
        try:
            await log.append(entry(log, b"x" * 4000))
        except BusUnavailable:
            return acknowledged
    raise AssertionError


async def test_a_full_disk_refuses_and_keeps_what_was_acknowledged(path: Path) -> None:
    log = EmbeddedLog(path, max_bytes=300_000)
    await log.create_topic("t", 1, timedelta(0))
    acknowledged = await fill_up(log)
    fault, before = log.writer.fault, log.end_offset(T0)
    with pytest.raises(BusUnavailable):
        await log.append(entry(log, b"x" * 4000))
    kept = len(await values(log))
    log.close()

    assert ("SQLITE_FULL", acknowledged) == (fault, before)
    assert acknowledged == kept

    again = EmbeddedLog(path)
    assert acknowledged == again.end_offset(T0)
    again.close()


async def test_after_a_full_disk_it_works_again_when_there_is_room(path: Path) -> None:
    clock = ManualClock()
    log = EmbeddedLog(path, max_bytes=300_000, clock=clock)
    await log.create_topic("t", 1, DAY)
    acknowledged = await fill_up(log)
    clock.advance(DAY.total_seconds() + 1)

    assert acknowledged == await log.apply_retention()
    placed = await log.append(entry(log, b"x" * 4000))
    log.close()

    assert acknowledged == placed.offset
    assert log.writer.fault is None


async def test_one_record_too_many_does_not_fail_its_neighbours(path: Path) -> None:
    """A transaction that fails is done again job by job."""
    log = EmbeddedLog(path, max_bytes=300_000)
    await log.create_topic("t", 1)

    def broken(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    jobs: list[Any] = [
        log.run(lambda c: c.execute("INSERT INTO replayed VALUES('a',0,0)")),
        log.run(broken),
        log.append(entry(log, b"small")),
    ]
    first, second, third = await asyncio.gather(*jobs, return_exceptions=True)
    log.close()

    assert isinstance(first, sqlite3.Cursor)
    assert isinstance(second, BusUnavailable)
    assert 0 == log.end_offset(T0) - 1
    assert not isinstance(third, BaseException)


async def test_an_offset_that_could_not_be_saved_is_saved_later(log: EmbeddedLog, path: Path) -> None:
    connection = log.writer._connection
    await log.flush()
    log.writer._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    log.commit("g", {T0: 5})
    await asyncio.sleep(0.05)
    log.writer._connection.close()
    log.writer._connection = connection

    await log.tidy()
    log.close()

    again = EmbeddedLog(path)
    assert 5 == again.committed("g", T0)
    again.close()


async def test_a_publisher_hears_of_a_full_disk_and_readiness_too(embedded: Any, make: Any) -> None:
    owned = embedded.transport.open()
    topic, bus = await embedded.topic(), embedded.bus("svc")
    await bus.start()
    await owned.log.run(
        lambda c: c.execute(
            f"PRAGMA max_page_count={int(c.execute('PRAGMA page_count').fetchone()[0]) + 3}"
        ).fetchone()
    )

    async def publish_until_refused() -> None:
        while True:
            await bus.publish_entry(make.entry(topic))

    with pytest.raises(BusUnavailable):
        await publish_until_refused()
    [check] = await bus.health()
    assert not check.ok
    inspector = embedded.transport.inspector()
    assert owned.log.end_offset(TopicPartition(topic, 0)) == len([r async for r in inspector.read(topic)])


def wal(path: Path) -> bytes:
    return path.with_name("bus.sqlite-wal").read_bytes()


# WAL --------------------------------------------------------------------------------------------------------


async def test_what_lies_in_the_wal_only_is_recovered(log: EmbeddedLog, path: Path, tmp_path: Path) -> None:
    """The three files as a power cut would leave them: nothing moved from the WAL into the database yet."""
    await fill(log, 20)
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")

    again = EmbeddedLog(copy)
    found = await values(again)
    again.close()

    assert [str(n).encode() for n in range(20)] == found


async def test_a_torn_end_of_the_wal_loses_only_what_was_not_finished(
    log: EmbeddedLog, path: Path, tmp_path: Path
) -> None:
    await fill(log, 20)
    durable = wal(path)
    await log.append(entry(log, b"torn" * 2000))
    torn = wal(path)[: len(durable) + 4096]
    shutil.copy(path, tmp_path / "copy.sqlite")
    (tmp_path / "copy.sqlite-wal").write_bytes(torn)

    again = EmbeddedLog(tmp_path / "copy.sqlite")
    found, end = await values(again), again.end_offset(T0)
    again.close()

    assert ([str(n).encode() for n in range(20)], 20) == (found, end)


async def test_the_wal_is_moved_into_the_file(log: EmbeddedLog, path: Path) -> None:
    await fill(log, 50)
    assert wal(path)

    await log.tidy()

    assert b"" == wal(path)


async def test_every_transaction_is_synchronous(log: EmbeddedLog) -> None:
    settings = await log.run(
        lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    )

    assert ["wal", 2] == settings


async def test_a_reader_cannot_write(log: EmbeddedLog, path: Path) -> None:
    reader = open_reader(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM records")
    reader.close()


async def test_a_closed_log_refuses(log: EmbeddedLog) -> None:
    log.close()

    with pytest.raises(BusUnavailable):
        await log.append(entry(log, b""))
