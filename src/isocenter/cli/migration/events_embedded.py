"""The embedded log as a migration sees it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from isocenter.common.bus.embedded import EmbeddedLog
from isocenter.common.bus.embedded.log import Entry
from isocenter.common.bus.inspect import StoredRecord
from isocenter.common.bus.kafka import TopicPartition
from isocenter.common.errors import BusUnavailable, Misconfigured
from isocenter.common.events.topics import Topic

PAGE = 200


class EmbeddedEvents:
    """See `isocenter.cli.migration.events.EventLog`. No housekeeping runs: nothing expires meanwhile."""

    def __init__(self, log: EmbeddedLog, *, owned: bool) -> None:
        self._log = log
        self._owned = owned

    @classmethod
    def open(cls, path: Path) -> EmbeddedEvents:
        """Raises Misconfigured: another process owns the file."""
        return cls(EmbeddedLog(path), owned=True)

    async def partitions(self, topic: str) -> int:
        return self._log.partitions.get(topic, 0)

    async def bounds(self, place: TopicPartition) -> tuple[int, int]:
        return self._log.first_offset(place), self._log.end_offset(place)

    async def read(self, place: TopicPartition, start: int, end: int) -> AsyncIterator[list[StoredRecord]]:
        offset = max(start, self._log.first_offset(place))
        while offset < end:
            found = await self._log.read(place, offset, min(PAGE, end - offset))
            if not found:
                return
            yield [
                StoredRecord(*place, one.offset, one.timestamp, one.key, tuple(one.headers), one.value)
                for one in found
            ]
            offset = found[-1].offset + 1

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        found = {
            place.partition: self._log.committed(group, place) for place in self._log.partitions_of(topic)
        }
        return {partition: offset for partition, offset in found.items() if offset is not None}

    async def members(self, groups: Sequence[str]) -> set[str]:
        """Members live in the process that owns the log, and that is this one."""
        return set()

    async def prepare(self, topic: Topic, partitions: int) -> None:
        retention = topic.retention if topic.cleanup_policy == "delete" else None
        await self._log.create_topic(topic.name, partitions, retention)
        if (found := self._log.partitions[topic.name]) != partitions:
            raise Misconfigured("the topic has another number of partitions", topic=topic.name, found=found)

    async def append(self, place: TopicPartition, records: Sequence[StoredRecord]) -> None:
        first = self._log.end_offset(place)
        await asyncio.gather(
            *(
                self._log.append_with(
                    Entry(place, one.timestamp_ms, one.key, one.value, one.headers),
                    _only_at(place, first + ahead),
                )
                for ahead, one in enumerate(records)
            )
        )

    async def replayed(self, place: TopicPartition) -> set[int]:
        query = "SELECT off FROM replayed WHERE topic=? AND part=?"
        return {offset for (offset,) in await self._log.query(lambda c: c.execute(query, place).fetchall())}

    async def mark_replayed(self, place: TopicPartition, offset: int) -> None:
        def job(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO replayed VALUES(?,?,?)", (*place, offset))

        await self._log.run(job)

    async def start_group(self, group: str, topic: str, offsets: dict[int, int]) -> None:
        await self._log.subscribe(group, [topic])
        self._log.commit(group, {TopicPartition(topic, part): offset for part, offset in offsets.items()})
        await self._log.flush()

    async def close(self) -> None:
        if self._owned:
            await asyncio.to_thread(self._log.close)


def _only_at(place: TopicPartition, offset: int) -> Callable[[sqlite3.Connection], None]:
    """Of a batch that does not fit, a later and smaller record may: never let it in before its turn."""

    def job(connection: sqlite3.Connection) -> None:
        query = "SELECT next FROM partitions WHERE topic=? AND part=?"
        if connection.execute(query, place).fetchone() != (offset,):
            raise BusUnavailable("an earlier record could not be written")

    return job
