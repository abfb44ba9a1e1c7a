"""Copies the event history, partition by partition, in order, as it is.

A copied partition is at any moment a prefix of its original, because records go out in order and a batch is
awaited before the next. So the copy is its own journal: what the target has is matched with the source, and
copying goes on behind it. Every record keeps its key, headers, value and time; offsets differ where the
source no longer begins at 0.

Retry topics are left out. Nothing waits in them once the source is drained, and what they held are copies.
Which dead letters were replayed is noted by each log in its own way, and is told to the target.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from isocenter.cli.errors import CommandError
from isocenter.cli.migration.iterating import closing
from isocenter.common.bus.inspect import StoredRecord
from isocenter.common.bus.kafka import TopicPartition
from isocenter.common.bus.records import DLQ_SUFFIX, REPLAYED, RETRY_SUFFIX
from isocenter.common.events.topics import TOPICS, Topic, all_topics


class EventLog(Protocol):
    """What a migration asks of an event log. Raises BusUnavailable when it cannot be reached."""

    async def partitions(self, topic: str) -> int:
        """How many; 0 where there is no such topic."""
        ...

    async def bounds(self, place: TopicPartition) -> tuple[int, int]:
        """The oldest offset that is there, and the one that the next record will get."""
        ...

    def read(self, place: TopicPartition, start: int, end: int) -> AsyncIterator[list[StoredRecord]]:
        """Records with offsets in [start, end), in order, in pages of bounded size."""
        ...

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> the offset at which the group goes on; a partition without one is left out."""
        ...

    async def members(self, groups: Sequence[str]) -> set[str]:
        """Those of the groups that somebody is a member of."""
        ...

    async def prepare(self, topic: Topic, partitions: int) -> None:
        """The topic is there and has this many partitions.

        Raises:
            Misconfigured: it is not, and topics are not created from here; or it has another number.
        """
        ...

    async def append(self, place: TopicPartition, records: Sequence[StoredRecord]) -> None:
        """Appends in order, durably, the oldest ones or all of them."""
        ...

    async def replayed(self, place: TopicPartition) -> set[int]:
        """Offsets of the dead letters of this partition that were given back to their group."""
        ...

    async def mark_replayed(self, place: TopicPartition, offset: int) -> None:
        """The dead letter was given back before it came here."""
        ...

    async def start_group(self, group: str, topic: str, offsets: dict[int, int]) -> None:
        """The group, which has no members, goes on at these offsets."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Matched:
    """How far the target's partition equals the source's.

    Attributes:
        records: that are equal, from the oldest on.
        following: offset of the first source record that the target has not.
        source_left: whether there is such a record.
        target_left: whether the target has a record that differs from the source's, or goes on behind it.
        digest: SHA-256 over the equal records.
    """

    records: int
    following: int
    source_left: bool
    target_left: bool
    digest: str


@dataclass(frozen=True, slots=True)
class TopicTally:
    """One topic after the comparison. `digest` is that of the equal records of all its partitions."""

    topic: str
    source: int
    target: int
    equal: bool
    digest: str


Told = Callable[[int], None]
"""Records done."""


def copied_topics() -> list[Topic]:
    return [topic for topic in all_topics().values() if not topic.name.endswith(RETRY_SUFFIX)]


def consumer_groups() -> list[tuple[str, str]]:
    """Group and topic of every subscription of this platform."""
    return [(group, topic.name) for topic in TOPICS.values() for group in topic.consumers]


async def copy(source: EventLog, target: EventLog, now: datetime, told: Told) -> int:
    """Copies what the target lacks; returns how many records.

    Raises:
        CommandError: the target holds other records than the source.
        Misconfigured: a topic cannot be used as it is.
        BusUnavailable
    """
    copied = done = 0
    for topic in copied_topics():
        count = await source.partitions(topic.name)
        if not count:
            continue
        await target.prepare(topic, count)
        for place in places(topic.name, count):
            found = await match(source, target, place, oldest_kept(topic, now))
            if found.target_left:
                raise CommandError(
                    f"{place.topic}, partition {place.partition}, of the target holds records that the source"
                    " lacks",
                    hint="give the migration topics of its own, empty or from an earlier run of it",
                )
            done += found.records
            told(done)
            _, end = await source.bounds(place)
            if not found.source_left:
                end = found.following
            async with closing(kept(source, place, found.following, end, oldest_kept(topic, now))) as pages:
                async for page in pages:
                    await target.append(place, page)
                    copied += len(page)
                    done += len(page)
                    told(done)
            if topic.name.endswith(DLQ_SUFFIX):
                await _mark_replayed(source, target, place, oldest_kept(topic, now))
    return copied


async def place_groups(source: EventLog, target: EventLog) -> None:
    """Puts every group of this platform before the first record that it has not handled: what is behind it
    was handled at the source, and its effects were moved. A group that never read starts at the beginning.
    """
    for group, topic in consumer_groups():
        offsets: dict[int, int] = {}
        committed = await source.committed(group, topic)
        for partition, offset in committed.items():
            place = TopicPartition(topic, partition)
            _, end = await source.bounds(place)
            waiting = 0
            if offset < end:
                async with closing(source.read(place, offset, end)) as pages:
                    async for page in pages:
                        waiting += len(page)
            first, target_end = await target.bounds(place)
            offsets[partition] = max(first, target_end - waiting)
        if offsets:
            await target.start_group(group, topic, offsets)


async def compare(source: EventLog, target: EventLog, now: datetime, told: Told) -> list[TopicTally]:
    tallies: list[TopicTally] = []
    done = 0
    for topic in copied_topics():
        oldest = oldest_kept(topic, now)
        count = max(await source.partitions(topic.name), await target.partitions(topic.name))
        sums = [0, 0]
        equal = True
        digest = hashlib.sha256()
        for place in places(topic.name, count):
            found = await match(source, target, place, oldest)
            equal &= not found.source_left and not found.target_left
            digest.update(bytes.fromhex(found.digest))
            for side, log in enumerate((source, target)):
                if found.source_left or found.target_left:
                    sums[side] += await _count(log, place, oldest)
                else:
                    sums[side] += found.records
            done += found.records
            told(done)
        if count:
            tallies.append(TopicTally(topic.name, sums[0], sums[1], equal, digest.hexdigest()))
    return tallies


async def match(source: EventLog, target: EventLog, place: TopicPartition, oldest: int) -> Matched:
    """Reads both in step. Records older than `oldest` (milliseconds) are left out on both sides."""
    start, end = await _span(source, place)
    target_start, target_end = await _span(target, place)
    digest = hashlib.sha256()
    records, following = 0, start
    source_left = target_left = False
    async with (
        closing(_each(kept(source, place, start, end, oldest))) as ours,
        closing(_each(kept(target, place, target_start, target_end, oldest))) as theirs,
    ):
        while True:
            one, other = await anext(ours, None), await anext(theirs, None)
            if one is None or other is None or content(one) != content(other):
                source_left, target_left = one is not None, other is not None
                if one is not None:
                    following = one.offset
                break
            digest.update(content(one))
            records += 1
            following = one.offset + 1
    return Matched(records, following, source_left, target_left, digest.hexdigest())


async def kept(
    log: EventLog, place: TopicPartition, start: int, end: int, oldest: int
) -> AsyncIterator[list[StoredRecord]]:
    """What retention has not caught up with: a broker may delete the rest while it is being compared. Notes
    that a dead letter was replayed are no part of the history.
    """
    async with closing(log.read(place, start, end)) as pages:
        async for page in pages:
            if young := [
                record for record in page if record.timestamp_ms >= oldest and record.header(REPLAYED) is None
            ]:
                yield young


def content(record: StoredRecord) -> bytes:
    """Digest of everything that a copy must keep. A header without a value means as much as none, and not
    every client can write one; nor a record of neither key nor value.
    """
    digest = hashlib.sha256(struct.pack(">q", record.timestamp_ms))
    parts = [record.key, record.value if record.key is not None else record.value or b""]
    for name, value in record.headers:
        if value is not None:
            parts += [name.encode(), value]
    for part in parts:
        digest.update(struct.pack(">q", -1 if part is None else len(part)))
        digest.update(part or b"")
    return digest.digest()


def places(topic: str, partitions: int) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for partition in range(partitions)]


def oldest_kept(topic: Topic, now: datetime) -> int:
    """Unix time in milliseconds of the oldest record that the topic's retention spares; 0: all are spared."""
    if topic.cleanup_policy != "delete":
        return 0
    return int((now - topic.retention).timestamp() * 1000)


async def total(log: EventLog) -> int:
    """Records in the copied topics, expired ones included."""
    count = 0
    for topic in copied_topics():
        for place in places(topic.name, await log.partitions(topic.name)):
            first, end = await log.bounds(place)
            count += end - first
    return count


async def lag(log: EventLog, group: str, topic: str) -> int:
    """Records of the topic that the group has not finished."""
    committed = await log.committed(group, topic)
    count = 0
    for place in places(topic, await log.partitions(topic)):
        first, end = await log.bounds(place)
        count += end - max(first, committed.get(place.partition, first))
    return count


async def _mark_replayed(source: EventLog, target: EventLog, place: TopicPartition, oldest: int) -> None:
    if not (done := await source.replayed(place)):
        return
    known = await target.replayed(place)
    start, end = await source.bounds(place)
    target_start, target_end = await target.bounds(place)
    async with (
        closing(_each(kept(source, place, start, end, oldest))) as ours,
        closing(_each(kept(target, place, target_start, target_end, oldest))) as theirs,
    ):
        async for one in ours:
            other = await anext(theirs, None)
            if other is not None and one.offset in done and other.offset not in known:
                await target.mark_replayed(place, other.offset)


async def _span(log: EventLog, place: TopicPartition) -> tuple[int, int]:
    if place.partition >= await log.partitions(place.topic):
        return 0, 0
    return await log.bounds(place)


async def _count(log: EventLog, place: TopicPartition, oldest: int) -> int:
    start, end = await _span(log, place)
    count = 0
    async with closing(kept(log, place, start, end, oldest)) as pages:
        async for page in pages:
            count += len(page)
    return count


async def _each(pages: AsyncIterator[list[StoredRecord]]) -> AsyncIterator[StoredRecord]:
    async for page in pages:
        for record in page:
            yield record
