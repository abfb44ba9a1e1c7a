"""Reading topics, replaying dead letters and rewinding groups of the embedded log.

Reading works beside a running platform: SQLite's WAL lets another process read. Writing does not, because the
owner keeps ends and offsets in memory. So a replay from another process is a row in the table `requests`: the
owner looks there twice a second, does it, and writes the answer into the row in the same transaction. While
the platform is down the inspector takes the lock and does it itself. A request that nobody answered in time
is withdrawn, so that it never happens long after the operator was told that it did not.

A dead letter goes back through the retry topic of the group it came from: only that group sees it again, in
the consumer that knows how to fail.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from isocenter.common.bus.embedded import Coordinator, EmbeddedLog
from isocenter.common.bus.embedded.log import Entry, read_entries
from isocenter.common.bus.embedded.schema import OFFSET_BITS, open_reader
from isocenter.common.bus.inspection import DeadLetter, GroupLag, StoredRecord, TopicInspector, dead_letter
from isocenter.common.bus.kafka import DefaultPartitioner, TopicPartition
from isocenter.common.bus.records import DLQ_SUFFIX, replay_headers, retry_topic_of_dlq
from isocenter.common.errors import BusUnavailable, IsocenterError, Misconfigured, NotFound, Transient

T = TypeVar("T")
READ_AHEAD = 200
ANSWER_SECONDS = 10.0


class EmbeddedInspector:
    """Over the embedded log: inside its owner, or from another process by the path of the file."""

    def __init__(self, path: Path, owner: tuple[EmbeddedLog, Coordinator] | None = None) -> None:
        self._path = path
        self._owner = owner
        self._connection: sqlite3.Connection | None = None

    async def topics(self) -> dict[str, int]:
        query = "SELECT topic, sum(next - first) FROM partitions GROUP BY topic ORDER BY topic"
        return dict(await self._query(lambda c: c.execute(query).fetchall()))

    async def read(self, topic: str, start_offset: int = 0) -> AsyncIterator[StoredRecord]:
        query = "SELECT part, id, next FROM partitions WHERE topic=? ORDER BY part"
        partitions = await self._query(lambda c: c.execute(query, (topic,)).fetchall())
        if not partitions:
            raise NotFound("no such topic", topic=topic)
        for part, identifier, end in partitions:
            partition, offset = TopicPartition(topic, part), start_offset
            while offset < end:
                found = await self._query(_page(partition, identifier, offset))
                for position, entry in found:
                    if position < end:
                        yield _stored(position, entry)
                if not found:
                    break
                offset = found[-1][0] + 1

    async def dead_letters(self) -> AsyncIterator[DeadLetter]:
        done, groups = await self._query(_replayed_and_groups)
        for topic in [name for name in await self.topics() if name.endswith(DLQ_SUFFIX)]:
            async for record in self.read(topic):
                yield dead_letter(record, groups, (topic, record.partition, record.offset) in done)

    async def replay(self, topic: str, partition: int, offset: int) -> None:
        await self._request("replay", {"topic": topic, "partition": partition, "offset": offset})

    async def replay_all(self, topic: str | None = None) -> int:
        waiting = [
            letter.record
            async for letter in self.dead_letters()
            if not letter.replayed and topic in {None, letter.record.topic}
        ]
        for record in waiting:
            await self.replay(record.topic, record.partition, record.offset)
        return len(waiting)

    async def groups(self) -> list[GroupLag]:
        query = """SELECT s.grp, s.topic, sum(p.next - max(p.first, coalesce(o.off, p.first)))
            FROM subscriptions s JOIN partitions p ON p.topic = s.topic
            LEFT JOIN offsets o ON o.grp = s.grp AND o.topic = p.topic AND o.part = p.part
            GROUP BY s.grp, s.topic ORDER BY s.grp, s.topic"""
        return [GroupLag(*row) for row in await self._query(lambda c: c.execute(query).fetchall())]

    async def rewind(self, group: str, topic: str) -> None:
        await self._request("rewind", {"group": group, "topic": topic})

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _query(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        if self._owner is not None:
            return await self._owner[0].query(ask)
        try:
            if self._connection is None:
                self._connection = await asyncio.to_thread(open_reader, self._path)
            return await asyncio.to_thread(ask, self._connection)
        except sqlite3.Error as error:
            cause = getattr(error, "sqlite_errorname", type(error).__name__)
            raise BusUnavailable("the event log could not be read", cause=cause) from None

    async def _request(self, kind: str, args: dict[str, Any]) -> None:
        if self._owner is not None:
            await _perform(*self._owner, kind, args)
            return
        if not self._path.exists():
            raise NotFound("there is no event log here")
        try:
            log = await asyncio.to_thread(EmbeddedLog, self._path)
        except Misconfigured:
            await self._ask_owner(kind, args)
            return
        coordinator = Coordinator(log)
        try:
            await _perform(log, coordinator, kind, args)
        finally:
            await coordinator.close()
            await asyncio.to_thread(log.close)

    async def _ask_owner(self, kind: str, args: dict[str, Any]) -> None:
        identifier = await asyncio.to_thread(_file_request, self._path, kind, json.dumps(args))
        query = "SELECT result FROM requests WHERE id=?"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while True:
                    row = await self._query(lambda c: c.execute(query, (identifier,)).fetchone())
                    if row is not None and row[0] is not None:
                        _raise_answer(row[0])
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass
        if await asyncio.to_thread(_withdraw, self._path, identifier):
            raise Transient("the running platform did not answer: look at its log and /readyz")
        row = await self._query(lambda c: c.execute(query, (identifier,)).fetchone())
        _raise_answer(row[0] if row is not None else "")


async def serve_requests(log: EmbeddedLog, coordinator: Coordinator) -> None:
    """Does what other processes asked for. A request whose answer is written is done, exactly once."""
    query = "SELECT id, kind, args FROM requests WHERE result IS NULL ORDER BY id"
    for identifier, kind, args in await log.query(lambda c: c.execute(query).fetchall()):
        try:
            await _perform(log, coordinator, kind, json.loads(args), request=identifier)
        except BusUnavailable:
            raise
        except IsocenterError as error:
            await log.run(_answered(identifier, f"{type(error).__name__}: {error.message}"))


async def _perform(
    log: EmbeddedLog, coordinator: Coordinator, kind: str, args: dict[str, Any], request: int | None = None
) -> None:
    if kind == "replay":
        place = TopicPartition(args["topic"], args["partition"])
        await _replay(log, place, args["offset"], request)
    elif kind == "rewind":
        group, topic = args["group"], args["topic"]
        if topic not in log.partitions or group not in log.groups_of(topic):
            raise NotFound("the group does not read this topic", group=group, topic=topic)
        await coordinator.rewind(group, topic)
        await log.flush()
        if request is not None:
            await log.run(_answered(request, "ok"))
    else:
        raise Misconfigured("no such request", kind=kind)


async def _replay(log: EmbeddedLog, place: TopicPartition, offset: int, request: int | None) -> None:
    groups = {group for topic in log.partitions for group in log.groups_of(topic)}
    target = retry_topic_of_dlq(place.topic, groups)
    if target is None or target not in log.partitions or place.topic not in log.partitions:
        raise NotFound("not a dead-letter topic", topic=place.topic)
    found = await log.read(place, offset, 1) if place.partition < log.partitions[place.topic] else []
    if not found or found[0].offset != offset:
        raise NotFound("no such dead letter", topic=place.topic, partition=place.partition, offset=offset)
    letter = found[0]
    every = list(range(log.partitions[target]))
    partition = TopicPartition(target, DefaultPartitioner()(letter.key, every, every))
    headers = replay_headers(*place, offset, tuple(letter.headers))
    entry = Entry(partition, log.now_ms(), letter.key, letter.value, headers)

    def job(connection: sqlite3.Connection) -> None:
        if request is not None:
            _answered(request, "ok")(connection)
        connection.execute("INSERT OR IGNORE INTO replayed VALUES(?,?,?)", (*place, offset))

    await log.append_with(entry, job)


def _answered(identifier: int, result: str) -> Callable[[sqlite3.Connection], None]:
    def job(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE requests SET result=? WHERE id=?", (result, identifier))

    return job


def _raise_answer(result: str) -> None:
    name, _, message = result.partition(": ")
    if name == NotFound.__name__:
        raise NotFound(message)
    if name != "ok":
        raise Transient(message or "the platform could not do it", cause=name)


def _file_request(path: Path, kind: str, args: str) -> int:
    """The only write of a process that does not own the log: a row in a table that the owner never caches."""
    with sqlite3.connect(path, timeout=5.0) as connection:
        cursor = connection.execute("INSERT INTO requests(kind, args) VALUES(?,?)", (kind, args))
        identifier = cursor.lastrowid
    connection.close()
    if identifier is None:
        raise BusUnavailable("the request could not be written")
    return identifier


def _withdraw(path: Path, identifier: int) -> bool:
    """True when the request was still open: nobody will do it now."""
    with sqlite3.connect(path, timeout=5.0) as connection:
        cursor = connection.execute("DELETE FROM requests WHERE id=? AND result IS NULL", (identifier,))
    connection.close()
    return cursor.rowcount == 1


def _page(
    partition: TopicPartition, identifier: int, offset: int
) -> Callable[[sqlite3.Connection], list[tuple[int, Entry]]]:
    return lambda c: read_entries(c, partition, identifier << OFFSET_BITS, offset, READ_AHEAD)


def _replayed_and_groups(connection: sqlite3.Connection) -> tuple[set[tuple[str, int, int]], set[str]]:
    done = set(connection.execute("SELECT topic, part, off FROM replayed"))
    return done, {group for (group,) in connection.execute("SELECT DISTINCT grp FROM subscriptions")}


def _stored(offset: int, entry: Entry) -> StoredRecord:
    return StoredRecord(
        entry.partition.topic,
        entry.partition.partition,
        offset,
        entry.timestamp_ms,
        entry.key,
        entry.headers,
        entry.value,
    )


__all__ = ["DeadLetter", "EmbeddedInspector", "GroupLag", "StoredRecord", "TopicInspector"]
