"""The durable partitioned log: topics, records, committed offsets, retention. One owner process.

What readers ask often (end offsets, committed offsets, the newest records) is answered from memory; the file
is the truth and is read again at start.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from isocenter.common.bus.embedded.lock import FileLock
from isocenter.common.bus.embedded.schema import OFFSET_BITS, open_reader, pack_headers, unpack_headers
from isocenter.common.bus.embedded.writer import Job, Writer
from isocenter.common.bus.kafka import (
    ConsumerRecord,
    MessageSizeTooLargeError,
    RecordMetadata,
    TopicPartition,
    UnknownTopicOrPartitionError,
)
from isocenter.common.bus.records import DLQ_SUFFIX, RETRY_SUFFIX
from isocenter.common.clock import Clock, SystemClock
from isocenter.common.errors import BusUnavailable

T = TypeVar("T")
Headers = Sequence[tuple[str, bytes | None]]
MAX_RECORD_BYTES = 1_048_576
"""Kafka's default `max.message.bytes`, so that what the embedded log takes, a cluster takes."""
COPY_HEADROOM = 16_384
"""A copy on a retry or dead-letter topic is its record and a few headers more. If it did not fit there, a
record of full size that fails could never be moved, and would hold its partition for ever. On a cluster:
`max.message.bytes` of these topics."""
TAIL_RECORDS = 1_000
TAIL_BYTES = 1_048_576
DELETE_CHUNK = 1_000
"""Records that one retention transaction deletes: publishers wait behind it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record before it has an offset."""

    partition: TopicPartition
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def size(self) -> int:
        return (
            len(self.key or b"")
            + len(self.value or b"")
            + sum(len(name) + len(value or b"") for name, value in self.headers)
        )


@dataclass(slots=True)
class _Tail:
    """The newest records of a partition, contiguous: consumers that keep up never touch the file."""

    records: deque[tuple[int, Entry]] = field(default_factory=deque)
    sizes: deque[int] = field(default_factory=deque)
    size: int = 0

    def push(self, offset: int, entry: Entry) -> None:
        if self.records and self.records[-1][0] + 1 != offset:
            if offset <= self.records[-1][0]:
                return
            self.records.clear()
            self.sizes.clear()
            self.size = 0
        self.records.append((offset, entry))
        self.sizes.append(entry.size)
        self.size += self.sizes[-1]
        while len(self.records) > TAIL_RECORDS or (self.size > TAIL_BYTES and len(self.records) > 1):
            self.records.popleft()
            self.size -= self.sizes.popleft()

    def read(self, offset: int, limit: int) -> list[tuple[int, Entry]] | None:
        """None when the offset is not in memory."""
        if not self.records or not self.records[0][0] <= offset <= self.records[-1][0]:
            return None
        start = offset - self.records[0][0]
        return [self.records[index] for index in range(start, min(start + limit, len(self.records)))]


class _Append:
    """Everything published since the writer last took a job: one insert for all of it."""

    def __init__(self, ids: dict[TopicPartition, int]) -> None:
        self._ids = ids
        self._guard = threading.Lock()
        self._sealed = False
        self.entries: list[Entry] = []
        self.futures: list[asyncio.Future[RecordMetadata]] = []

    def add(self, entry: Entry, future: asyncio.Future[RecordMetadata]) -> bool:
        with self._guard:
            if self._sealed:
                return False
            self.entries.append(entry)
            self.futures.append(future)
            return True

    def __call__(self, connection: sqlite3.Connection) -> list[int]:
        with self._guard:
            self._sealed = True
        return append_entries(connection, self._ids, self.entries)


class _Commit:
    """Committed offsets since the writer last took a job: only the newest of each partition is written."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sealed = False
        self.offsets: dict[tuple[str, TopicPartition], int] = {}

    def add(self, group: str, offsets: dict[TopicPartition, int]) -> bool:
        with self._guard:
            if self._sealed:
                return False
            self.offsets.update({(group, partition): offset for partition, offset in offsets.items()})
            return True

    def __call__(self, connection: sqlite3.Connection) -> None:
        with self._guard:
            self._sealed = True
        connection.executemany(
            "INSERT OR REPLACE INTO offsets VALUES(?,?,?,?)",
            [(group, *partition, offset) for (group, partition), offset in self.offsets.items()],
        )


class EmbeddedLog:
    """Opens (or creates) the log file and takes its lock.

    Raises:
        Misconfigured: another process owns the file, or a newer version wrote it.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None, max_bytes: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.clock: Clock = clock or SystemClock()
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._lock.acquire()
        try:
            self.writer = Writer(path, max_bytes=max_bytes)
        except BaseException:
            self._lock.release()
            raise
        self._reader = open_reader(path)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="isocenter-bus-reader")
        self.partitions: dict[str, int] = {}
        self._retention_ms: dict[str, int | None] = {}
        self._ids: dict[TopicPartition, int] = {}
        self._first: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
        self._committed: dict[str, dict[TopicPartition, int]] = {}
        self._subscribed: dict[str, set[str]] = {}
        self._tails: dict[TopicPartition, _Tail] = {}
        self._appending: _Append | None = None
        self._committing: _Commit | None = None
        self._unsaved: set[tuple[str, TopicPartition]] = set()
        self._listeners: set[Callable[[set[TopicPartition]], None]] = set()
        self.topic_listeners: set[Callable[[], None]] = set()
        self.closed = False
        self._load()

    async def run(self, job: Job[T]) -> T:
        """A job of another table of this file (parking, requests), in the same group commit."""
        return await self.writer.submit(job)

    async def query(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """A read on the reading connection.

        Raises:
            BusUnavailable: the file could not be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._ask, ask)

    def close(self) -> None:
        """Makes everything that waits durable and gives the file back. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._reading.shutdown(wait=True)
        self._reader.close()
        self.writer.close()
        self._lock.release()

    # topics -------------------------------------------------------------------------------------------------

    async def create_topic(self, name: str, partitions: int, retention: timedelta | None = None) -> bool:
        """Makes the topic known; retention of None keeps every record.

        A topic that exists keeps its number of partitions: another one would send a study's next event to
        another partition and break its order.

        Returns:
            False when it was there already.
        """
        retention_ms = None if retention is None else retention // timedelta(milliseconds=1)
        known = name in self.partitions
        if known and self._retention_ms[name] == retention_ms:
            return False
        count = self.partitions.get(name, partitions)

        def job(connection: sqlite3.Connection) -> list[tuple[int, int]]:
            connection.execute("INSERT OR REPLACE INTO topics VALUES(?,?,?)", (name, count, retention_ms))
            connection.executemany(
                "INSERT OR IGNORE INTO partitions(topic, part) VALUES(?,?)",
                [(name, part) for part in range(count)],
            )
            return connection.execute("SELECT part, id FROM partitions WHERE topic=?", (name,)).fetchall()

        for part, identifier in await self.run(job):
            self._ids[TopicPartition(name, part)] = identifier
        self.partitions[name] = count
        self._retention_ms[name] = retention_ms
        if not known:
            for listener in list(self.topic_listeners):
                listener()
        return not known

    def partitions_of(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, part) for part in range(self.partitions.get(topic, 0))]

    # records ------------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> asyncio.Future[RecordMetadata]:
        """The record's place once it is durable.

        Raises (from the future):
            UnknownTopicOrPartitionError: nobody created it; publishing never creates a topic.
            MessageSizeTooLargeError: more than `max_record_bytes` of the topic.
            BusUnavailable: disk full or an I/O error; the record was not kept.
        """
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        if self.closed:
            future.set_exception(BusUnavailable("the event log is closed"))
        elif entry.partition not in self._ids:
            future.set_exception(UnknownTopicOrPartitionError(entry.partition.topic))
        elif entry.size > max_record_bytes(entry.partition.topic):
            future.set_exception(MessageSizeTooLargeError(f"{entry.size} bytes"))
        elif self._appending is None or not self._appending.add(entry, future):
            append = self._appending = _Append(self._ids)
            append.add(entry, future)
            self.writer.submit(append).add_done_callback(lambda done: self._appended(append, done))
        return future

    async def append_with(self, entry: Entry, job: Job[None]) -> None:
        """Appends the record and does the job in one transaction: both or neither.

        Raises:
            BusUnavailable: neither.
        """

        def both(connection: sqlite3.Connection) -> int:
            job(connection)
            return append_entries(connection, self._ids, [entry])[0]

        offset = await self.run(both)
        self._tails.setdefault(entry.partition, _Tail()).push(offset, entry)
        self.grown({entry.partition: offset + 1})

    async def read(self, partition: TopicPartition, offset: int, limit: int) -> list[ConsumerRecord]:
        """Up to `limit` records, about 1 MiB, from the offset on."""
        tail = self._tails.get(partition)
        found = tail.read(offset, limit) if tail is not None else None
        if found is None:
            base = self._ids[partition] << OFFSET_BITS
            found = await self.query(
                lambda connection: read_entries(connection, partition, base, offset, limit)
            )
        return [_record(position, entry) for position, entry in found]

    def first_offset(self, partition: TopicPartition) -> int:
        """The oldest offset that retention left."""
        return self._first.get(partition, 0)

    def end_offset(self, partition: TopicPartition) -> int:
        """The offset that the next record will get."""
        return self._next.get(partition, 0)

    def watch(self, listener: Callable[[set[TopicPartition]], None]) -> None:
        """Calls the listener with the partitions that grew."""
        self._listeners.add(listener)

    def unwatch(self, listener: Callable[[set[TopicPartition]], None]) -> None:
        self._listeners.discard(listener)

    def grown(self, ends: dict[TopicPartition, int]) -> None:
        """Records of these partitions became durable."""
        for partition, end in ends.items():
            self._next[partition] = max(end, self.end_offset(partition))
        for listener in list(self._listeners):
            listener(set(ends))

    # offsets ------------------------------------------------------------------------------------------------

    def committed(self, group: str, partition: TopicPartition) -> int | None:
        return self._committed.get(group, {}).get(partition)

    def groups_of(self, topic: str) -> set[str]:
        """Groups that subscribed to the topic at any time and were not forgotten."""
        return {group for group, topics in self._subscribed.items() if topic in topics}

    def commit(self, group: str, offsets: dict[TopicPartition, int]) -> None:
        """Moves the group's offsets now and makes them durable with the next transaction.

        Nobody waits for that: an offset lost in a crash means one more delivery, which every handler expects.
        """
        self._committed.setdefault(group, {}).update(offsets)
        if self._committing is None or not self._committing.add(group, offsets):
            self._save({(group, partition): offset for partition, offset in offsets.items()})

    async def flush(self) -> None:
        """Returns when everything published and committed before the call is durable or has failed."""
        await self.run(lambda _connection: None)

    async def subscribe(self, group: str, topics: Iterable[str]) -> None:
        """Remembers that the group reads these topics: retention waits for it before its first commit."""
        new = set(topics) - self._subscribed.setdefault(group, set())
        if new:
            rows = [(group, topic) for topic in new]
            await self.run(lambda c: c.executemany("INSERT OR IGNORE INTO subscriptions VALUES(?,?)", rows))
            self._subscribed[group] |= new

    async def forget_group(self, group: str) -> None:
        """Removes a group that is gone for good, so that its offsets no longer hold retention back."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM offsets WHERE grp=?", (group,))
            connection.execute("DELETE FROM subscriptions WHERE grp=?", (group,))

        self._committed.pop(group, None)
        self._subscribed.pop(group, None)
        await self.run(job)

    # retention ----------------------------------------------------------------------------------------------

    async def apply_retention(self) -> int:
        """Deletes what is older than its topic's retention and below the lowest committed offset of every
        group that reads the topic. Returns the number of records deleted.
        """
        deleted = 0
        now_ms = self.now_ms()
        for partition, identifier in list(self._ids.items()):
            retention_ms = self._retention_ms.get(partition.topic)
            if retention_ms is None:
                continue
            floor = min(
                (self.committed(group, partition) or 0 for group in self.groups_of(partition.topic)),
                default=self.end_offset(partition),
            )
            first = self.first_offset(partition)
            while first < floor:
                cut = await self.run(_Trim(identifier, first, floor, now_ms - retention_ms))
                self._first[partition] = cut
                deleted += cut - first
                if cut - first < DELETE_CHUNK:
                    break
                first = cut
        return deleted

    async def tidy(self) -> None:
        """Saves offsets that could not be saved before, and moves the WAL into the file."""
        if self._unsaved:
            self._save({})
        await self.writer.checkpoint()

    def now_ms(self) -> int:
        return int(self.clock.now().timestamp() * 1000)

    def parked(self) -> list[tuple[str, bytes, str]]:
        """Waiting events of parked studies: group, key, event."""
        return self._reader.execute("SELECT grp, key, ident FROM parked").fetchall()

    # inside -------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        read = self._reader.execute
        for name, partitions, retention_ms in read("SELECT name, partitions, retention_ms FROM topics"):
            self.partitions[name], self._retention_ms[name] = partitions, retention_ms
        for identifier, topic, part, first, following in read(
            "SELECT id, topic, part, first, next FROM partitions"
        ):
            partition = TopicPartition(topic, part)
            self._ids[partition] = identifier
            self._first[partition], self._next[partition] = first, following
        for group, topic, part, offset in read("SELECT grp, topic, part, off FROM offsets"):
            self._committed.setdefault(group, {})[TopicPartition(topic, part)] = offset
        for group, topic in read("SELECT grp, topic FROM subscriptions"):
            self._subscribed.setdefault(group, set()).add(topic)

    def _ask(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return ask(self._reader)
        except sqlite3.Error as error:
            cause = getattr(error, "sqlite_errorname", type(error).__name__)
            raise BusUnavailable("the event log could not be read", cause=cause) from None

    def _appended(self, append: _Append, done: asyncio.Future[list[int]]) -> None:
        error = done.exception()
        if error is not None:
            for future in append.futures:
                if not future.done():
                    future.set_exception(BusUnavailable(*error.args, **getattr(error, "ids", {})))
            return
        ends: dict[TopicPartition, int] = {}
        for entry, future, offset in zip(append.entries, append.futures, done.result(), strict=True):
            partition = entry.partition
            ends[partition] = offset + 1
            self._tails.setdefault(partition, _Tail()).push(offset, entry)
            if not future.done():
                future.set_result(
                    RecordMetadata(
                        partition.topic, partition.partition, partition, offset, entry.timestamp_ms, 0, 0
                    )
                )
        self.grown(ends)

    def _save(self, offsets: dict[tuple[str, TopicPartition], int]) -> None:
        """Sends offsets to the writer, together with those whose transaction failed before."""
        commit = self._committing = _Commit()
        for group, partition in self._unsaved:
            if (offset := self.committed(group, partition)) is not None:
                commit.offsets[group, partition] = offset
        self._unsaved.clear()
        commit.offsets.update(offsets)
        self.writer.submit(commit, patient=True).add_done_callback(lambda done: self._saved(commit, done))

    def _saved(self, commit: _Commit, done: asyncio.Future[None]) -> None:
        if done.exception() is not None:
            self._unsaved.update(commit.offsets)


class _Trim:
    """Deletes one chunk of the oldest records of a partition. Returns the new first offset."""

    def __init__(self, identifier: int, first: int, floor: int, cutoff_ms: int) -> None:
        self._base = identifier << OFFSET_BITS
        self._identifier = identifier
        self._first = first
        self._floor = min(floor, first + DELETE_CHUNK)
        self._cutoff_ms = cutoff_ms

    def __call__(self, connection: sqlite3.Connection) -> int:
        young = connection.execute(
            "SELECT id FROM records WHERE id>=? AND id<? AND ts>=? ORDER BY id LIMIT 1",
            (self._base + self._first, self._base + self._floor, self._cutoff_ms),
        ).fetchone()
        cut = self._floor if young is None else young[0] - self._base
        if cut > self._first:
            connection.execute("DELETE FROM records WHERE id>=? AND id<?", (self._base, self._base + cut))
            connection.execute("UPDATE partitions SET first=? WHERE id=?", (cut, self._identifier))
        return int(cut)


def max_record_bytes(topic: str) -> int:
    moved = topic.endswith((RETRY_SUFFIX, DLQ_SUFFIX))
    return MAX_RECORD_BYTES + COPY_HEADROOM if moved else MAX_RECORD_BYTES


def append_entries(
    connection: sqlite3.Connection, ids: dict[TopicPartition, int], entries: Sequence[Entry]
) -> list[int]:
    """Inserts the records at the ends of their partitions, inside the caller's transaction."""
    following: dict[int, int] = {}
    offsets: list[int] = []
    rows: list[tuple[int, int, bytes | None, bytes | None, str]] = []
    for entry in entries:
        identifier = ids[entry.partition]
        offset = following.get(identifier)
        if offset is None:
            query = "SELECT next FROM partitions WHERE id=?"
            offset = int(connection.execute(query, (identifier,)).fetchone()[0])
        following[identifier] = offset + 1
        offsets.append(offset)
        rows.append(
            (
                identifier << OFFSET_BITS | offset,
                entry.timestamp_ms,
                entry.key,
                entry.value,
                pack_headers(entry.headers),
            )
        )
    connection.executemany("INSERT INTO records VALUES(?,?,?,?,?)", rows)
    connection.executemany(
        "UPDATE partitions SET next=? WHERE id=?",
        [(end, identifier) for identifier, end in following.items()],
    )
    return offsets


def read_entries(
    connection: sqlite3.Connection, partition: TopicPartition, base: int, offset: int, limit: int
) -> list[tuple[int, Entry]]:
    """Records of one partition in order, up to `limit` of them and about 1 MiB."""
    found: list[tuple[int, Entry]] = []
    size = 0
    for identifier, timestamp_ms, key, value, headers in connection.execute(
        "SELECT id, ts, key, value, headers FROM records WHERE id>=? AND id<? ORDER BY id LIMIT ?",
        (base + offset, base + (1 << OFFSET_BITS), limit),
    ):
        entry = Entry(partition, timestamp_ms, key, value, unpack_headers(headers))
        found.append((identifier - base, entry))
        size += entry.size
        if size >= TAIL_BYTES:
            break
    return found


def _record(offset: int, entry: Entry) -> ConsumerRecord:
    return ConsumerRecord(
        entry.partition.topic,
        entry.partition.partition,
        offset,
        entry.timestamp_ms,
        0,
        entry.key,
        entry.value,
        None,
        -1 if entry.key is None else len(entry.key),
        -1 if entry.value is None else len(entry.value),
        entry.headers,
    )
