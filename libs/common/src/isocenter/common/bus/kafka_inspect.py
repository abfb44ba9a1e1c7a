"""Reading topics, replaying dead letters and rewinding groups of a Kafka cluster.

A dead letter goes back through the retry topic of the group it came from: only that group sees it again. Then
a note is appended to the dead-letter topic, a record without a value whose header names the letter's place.
Everybody who reads the topic sees it, it needs no topic of its own, and it outlives the letter. The note
follows the copy, so a crash in between replays the letter twice, which handlers expect, and never loses it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from isocenter.common.bus.inspection import DeadLetter, GroupLag, StoredRecord, dead_letter
from isocenter.common.bus.kafka import (
    AIOKafkaAdminClient,
    AIOKafkaConsumer,
    AIOKafkaProducer,
    CommitFailedError,
    KafkaError,
    TopicPartition,
)
from isocenter.common.bus.kafka_options import client_options, producer_options
from isocenter.common.bus.kafka_producer import PUBLISH_SECONDS, stop_producer
from isocenter.common.bus.records import (
    DLQ_SUFFIX,
    REPLAYED,
    parse_ident,
    replay_headers,
    retry_topic_of_dlq,
)
from isocenter.common.errors import BusUnavailable, IsocenterError, NotFound, Transient
from isocenter.common.settings import KafkaSettings

CLIENT = "isocenter-inspector"
POLL_MS = 1_000


class KafkaInspector:
    """Implements `TopicInspector`. Connects at its first use; `close` it."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._reader: Any = None
        self._admin: Any = None
        self._producer: Any = None
        self._lock = asyncio.Lock()

    async def topics(self) -> dict[str, int]:
        with _told():
            reader = await self._open_reader()
            names = [name for name in await reader.topics() if not name.startswith("__")]
            partitions = [one for name in names for one in await self._partitions(name)]
            first, ends = await reader.beginning_offsets(partitions), await reader.end_offsets(partitions)
        counts = dict.fromkeys(sorted(names), 0)
        for one in partitions:
            counts[one.topic] += ends[one] - first[one]
        return counts

    async def read(self, topic: str, start_offset: int = 0) -> AsyncIterator[StoredRecord]:
        with _told():
            partitions = await self._partitions(topic)
            if not partitions:
                raise NotFound("no such topic", topic=topic)
            consumer = await self._consumer()
        try:
            for partition in partitions:
                async for record in self._read(consumer, partition, start_offset):
                    yield record
        finally:
            await consumer.stop()

    async def dead_letters(self) -> AsyncIterator[DeadLetter]:
        groups = await self._groups()
        for topic in [name for name in await self.topics() if name.endswith(DLQ_SUFFIX)]:
            letters, replayed = await self._letters(topic)
            for record in letters:
                yield dead_letter(record, groups, (record.partition, record.offset) in replayed)

    async def replay(self, topic: str, partition: int, offset: int) -> None:
        target = retry_topic_of_dlq(topic, await self._groups())
        known = await self.topics()
        if target is None or target not in known or topic not in known:
            raise NotFound("not a dead-letter topic", topic=topic)
        if partition >= len(await self._partitions(topic)):
            raise NotFound("no such dead letter", topic=topic, partition=partition, offset=offset)
        place = TopicPartition(topic, partition)
        with _told():
            consumer = await self._consumer()
        try:
            found = self._read(consumer, place, offset)
            letter = await anext(found, None)
            await found.aclose()
        finally:
            await consumer.stop()
        if letter is None or letter.offset != offset or letter.header(REPLAYED) is not None:
            raise NotFound("no such dead letter", topic=topic, partition=partition, offset=offset)
        headers = replay_headers(topic, partition, offset, letter.headers)
        note = f"{topic}/{partition}/{offset}".encode()
        await self._send(target, None, letter.key, letter.value, headers)
        await self._send(topic, partition, letter.key or b"", None, ((REPLAYED, note),))

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
        found = []
        with _told():
            reader, admin = await self._open_reader(), await self._open_admin()
            for group in sorted(await self._groups()):
                committed = await admin.list_consumer_group_offsets(group)
                topics = {partition.topic for partition in committed} & await reader.topics()
                for topic in sorted(topics):
                    partitions = await self._partitions(topic)
                    first = await reader.beginning_offsets(partitions)
                    ends = await reader.end_offsets(partitions)
                    lag = 0
                    for one in partitions:
                        at = committed[one].offset if one in committed else -1
                        lag += max(0, ends[one] - max(at, first[one]))
                    found.append(GroupLag(group, topic, lag))
        return found

    async def rewind(self, group: str, topic: str) -> None:
        with _told():
            admin = await self._open_admin()
            committed = await admin.list_consumer_group_offsets(group)
            if all(partition.topic != topic for partition in committed):
                raise NotFound("the group does not read this topic", group=group, topic=topic)
            consumer = await self._consumer(group)
        try:
            with _told():
                partitions = await self._partitions(topic)
                consumer.assign(partitions)
                # The coordinator takes this only from a group without members: nothing moves under a reader.
                await consumer.commit(await consumer.beginning_offsets(partitions))
        except CommitFailedError:
            busy = True
        else:
            busy = False
        finally:
            await consumer.stop()
        if busy:
            raise Transient("the group has members: stop the service first", group=group)

    async def close(self) -> None:
        reader, admin, producer = self._reader, self._admin, self._producer
        self._reader = self._admin = self._producer = None
        if reader is not None:
            await reader.stop()
        if admin is not None:
            await admin.close()
        if producer is not None:
            await stop_producer(producer)

    async def _letters(self, topic: str) -> tuple[list[StoredRecord], set[tuple[int, int]]]:
        letters, replayed = [], set[tuple[int, int]]()
        async for record in self.read(topic):
            note = record.header(REPLAYED)
            place = None if note is None else parse_ident(note)
            if place is not None:
                replayed.add(place[1:])
            else:
                letters.append(record)
        return letters, replayed

    async def _read(
        self, consumer: Any, partition: TopicPartition, start_offset: int
    ) -> AsyncGenerator[StoredRecord]:
        """What is in the partition now, from this offset on."""
        with _told():
            consumer.assign([partition])
            end = (await consumer.end_offsets([partition]))[partition]
            first = (await consumer.beginning_offsets([partition]))[partition]
            consumer.seek(partition, max(start_offset, first))
        while True:
            with _told():
                if await consumer.position(partition) >= end:
                    return
                found = await consumer.getmany(partition, timeout_ms=POLL_MS)
            for record in found.get(partition, ()):
                if record.offset >= end:
                    return
                yield StoredRecord(
                    record.topic,
                    record.partition,
                    record.offset,
                    record.timestamp,
                    record.key,
                    tuple(record.headers),
                    record.value,
                )

    async def _send(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes | None], ...],
    ) -> None:
        with _told():
            async with asyncio.timeout(PUBLISH_SECONDS):
                producer = await self._open_producer()
                # Null header values cannot be written by this client, and mean as much as none.
                written = [(name, content) for name, content in headers if content is not None]
                value = (
                    b"" if value is None and key is None else value
                )  # the client takes no record of neither
                await producer.send_and_wait(topic, value, key, partition, headers=written)

    async def _groups(self) -> set[str]:
        with _told():
            return {row[0] for row in await (await self._open_admin()).list_consumer_groups()}

    async def _partitions(self, topic: str) -> list[TopicPartition]:
        with _told():
            reader = await self._open_reader()
            if topic not in await reader.topics():
                return []
            return [
                TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())
            ]

    async def _consumer(self, group: str | None = None) -> Any:
        consumer = AIOKafkaConsumer(
            **client_options(self._settings, CLIENT),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        return await _started(consumer, consumer.stop)

    async def _open_reader(self) -> Any:
        async with self._lock:
            if self._reader is None:
                self._reader = await self._consumer()
            return self._reader

    async def _open_admin(self) -> Any:
        async with self._lock:
            if self._admin is None:
                admin = AIOKafkaAdminClient(**client_options(self._settings, CLIENT))
                self._admin = await _started(admin, admin.close)
            return self._admin

    async def _open_producer(self) -> Any:
        async with self._lock:
            if self._producer is None:
                producer = AIOKafkaProducer(**producer_options(self._settings, CLIENT))
                self._producer = await _started(producer, lambda: stop_producer(producer))
            return self._producer


async def _started(client: Any, stop: Any) -> Any:
    try:
        await client.start()
    except BaseException:
        await stop()
        raise
    return client


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the client become ours; a refused commit is for the caller to explain."""
    try:
        yield
    except (IsocenterError, CommitFailedError):
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        cause = type(error).__name__
    else:
        return
    raise BusUnavailable("the cluster did not answer", cause=cause)
