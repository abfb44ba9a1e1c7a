"""Reading topics, replaying dead letters and rewinding groups of a Kafka cluster.

A dead letter goes back through the retry topic of the group it came from: only that group sees it again. Then
a note is appended to the dead-letter topic, a record without a value whose header names the letter's place.
Everybody who reads the topic sees it, it needs no topic of its own, and it outlives the letter. The note
follows the copy, so a crash in between replays the letter twice, which handlers expect, and never loses it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
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
        layout = await self._layout()
        partitions = [one for found in layout.values() for one in found]
        with _told():
            reader = await self._open_reader()
            await _learn(reader, partitions)
            first, ends = await reader.beginning_offsets(partitions), await reader.end_offsets(partitions)
        return {name: sum(ends[one] - first[one] for one in layout[name]) for name in sorted(layout)}

    async def read(self, topic: str, start_offset: int = 0) -> AsyncIterator[StoredRecord]:
        partitions = (await self._layout()).get(topic)
        if not partitions:
            raise NotFound("no such topic", topic=topic)
        async with self._reading() as consumer:
            async for record in _records(consumer, partitions, start_offset):
                yield record

    async def dead_letters(self) -> AsyncIterator[DeadLetter]:
        layout, groups = await self._layout(), await self._groups()
        partitions = [one for topic in sorted(layout) if topic.endswith(DLQ_SUFFIX) for one in layout[topic]]
        replayed = set[tuple[str, int, int]]()
        async with self._reading() as consumer:
            # Twice, because a note comes after its letter, and all letters need not fit into memory.
            async for record in _records(consumer, partitions):
                if (note := parse_ident(record.header(REPLAYED) or "")) is not None:
                    replayed.add(note)
            async for record in _records(consumer, partitions):
                if record.header(REPLAYED) is None:
                    done = (record.topic, record.partition, record.offset) in replayed
                    yield dead_letter(record, groups, done)

    async def replay(self, topic: str, partition: int, offset: int) -> None:
        layout, place = await self._layout(), TopicPartition(topic, partition)
        target = retry_topic_of_dlq(topic, await self._groups())
        if target not in layout or topic not in layout:
            raise NotFound("not a dead-letter topic", topic=topic)
        letter = None
        if place in layout[topic]:
            async with self._reading() as consumer:
                letter = await anext(_records(consumer, [place], offset), None)
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
        layout, found = await self._layout(), []
        with _told():
            reader, admin = await self._open_reader(), await self._open_admin()
            await _learn(reader, [one for partitions in layout.values() for one in partitions])
            for group in sorted(await self._groups()):
                committed = await admin.list_consumer_group_offsets(group)
                for topic in sorted({partition.topic for partition in committed} & set(layout)):
                    first = await reader.beginning_offsets(layout[topic])
                    ends = await reader.end_offsets(layout[topic])
                    lag = 0
                    for one in layout[topic]:
                        at = committed[one].offset if one in committed else -1
                        lag += max(0, ends[one] - max(at, first[one]))
                    found.append(GroupLag(group, topic, lag))
        return found

    async def rewind(self, group: str, topic: str) -> None:
        layout = await self._layout()
        with _told():
            committed = await (await self._open_admin()).list_consumer_group_offsets(group)
        if topic not in layout or all(partition.topic != topic for partition in committed):
            raise NotFound("the group does not read this topic", group=group, topic=topic)
        try:
            async with self._reading(group) as consumer:
                consumer.assign(layout[topic])
                # The coordinator takes this only from a group without members: nothing moves under a reader.
                await consumer.commit(await consumer.beginning_offsets(layout[topic]))
            return
        except CommitFailedError:
            pass
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

    async def _layout(self) -> dict[str, list[TopicPartition]]:
        """The partitions of every topic that is not Kafka's own."""
        with _told():
            described = await (await self._open_admin()).describe_topics()
        return {
            one["topic"]: [
                TopicPartition(one["topic"], number)
                for number in sorted(each["partition"] for each in one["partitions"])
            ]
            for one in described
            if not one["is_internal"]
        }

    @contextlib.asynccontextmanager
    async def _reading(self, group: str | None = None) -> AsyncIterator[Any]:
        with _told():
            consumer = await self._consumer(group)
            try:
                yield consumer
            finally:
                await consumer.stop()

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


async def _records(
    consumer: Any, partitions: Sequence[TopicPartition], start_offset: int = 0
) -> AsyncIterator[StoredRecord]:
    """What is in the partitions now, from this offset on, one partition after the other."""
    await _learn(consumer, partitions)
    ends = await consumer.end_offsets(partitions)
    begins = {
        one: max(start_offset, first) for one, first in (await consumer.beginning_offsets(partitions)).items()
    }
    filled = [one for one in partitions if begins[one] < ends[one]]
    consumer.assign(filled)
    for partition in filled:
        consumer.seek(partition, begins[partition])
    for partition in filled:
        while await consumer.position(partition) < ends[partition]:
            found = await consumer.getmany(partition, timeout_ms=POLL_MS)
            for record in found.get(partition, ()):
                if record.offset < ends[partition]:
                    yield StoredRecord(
                        record.topic,
                        record.partition,
                        record.offset,
                        record.timestamp,
                        record.key,
                        tuple(record.headers),
                        record.value,
                    )


async def _learn(consumer: Any, partitions: Sequence[TopicPartition]) -> None:
    """Asks for the leaders of all of them at once; the client would ask for one topic after the other."""
    await consumer._client.set_topics({one.topic for one in partitions})  # noqa: SLF001 - no public name


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
