"""A Kafka cluster as a migration sees it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped] # no py.typed
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped] # as above

from isocenter.common.bus.admin import connection
from isocenter.common.bus.inspect import StoredRecord
from isocenter.common.bus.kafka import KafkaError, TopicPartition
from isocenter.common.bus.provision import require
from isocenter.common.errors import BusUnavailable, IsocenterError, Misconfigured
from isocenter.common.events.topics import Topic
from isocenter.common.settings import KafkaSettings

PAGE = 500
FETCH_MS = 1_000
EMPTY_FETCHES = 30
"""Fetches that bring nothing before a read is given up: behind the last record may stand marks of
transactions, which move the position and are no records.
"""
REQUEST_MS = 30_000
_NO_OFFSET = -1


class KafkaEvents:
    """See `isocenter.cli.migration.events.EventLog`. Topics are never created from here.

    Needs: Read and Describe on the topics and groups of the platform, as a target also Write on the topics.
    """

    def __init__(
        self, admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, settings: KafkaSettings
    ) -> None:
        self._admin = admin
        self._consumer = consumer
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._partitions: dict[str, int] = {}

    @classmethod
    async def open(cls, settings: KafkaSettings) -> KafkaEvents:
        """Raises Misconfigured, BusUnavailable."""
        options = connection(settings)
        admin = AIOKafkaAdminClient(request_timeout_ms=REQUEST_MS, **options)
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            request_timeout_ms=REQUEST_MS,
            **options,
        )
        found = cls(admin, consumer, settings)
        try:
            with _translated():
                await admin.start()
                await consumer.start()
                for topic in await admin.describe_topics():
                    if not topic["error_code"]:
                        found._partitions[topic["topic"]] = len(topic["partitions"])
        except BaseException:
            await found.close()
            raise
        return found

    async def partitions(self, topic: str) -> int:
        return self._partitions.get(topic, 0)

    async def bounds(self, place: TopicPartition) -> tuple[int, int]:
        with _translated():
            first = await self._consumer.beginning_offsets([place])
            end = await self._consumer.end_offsets([place])
        return first[place], end[place]

    async def read(self, place: TopicPartition, start: int, end: int) -> AsyncIterator[list[StoredRecord]]:
        if start >= end:
            return
        # A consumer of its own, because two partitions are read in step.
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            request_timeout_ms=REQUEST_MS,
            **connection(self._settings),
        )
        try:
            with _translated():
                await consumer.start()
                consumer.assign([place])
                consumer.seek(place, start)
            empty = 0
            while True:
                with _translated():
                    if await consumer.position(place) >= end:
                        return
                    found = await consumer.getmany(place, timeout_ms=FETCH_MS, max_records=PAGE)
                page = [_stored(record) for record in found.get(place, ()) if record.offset < end]
                if page:
                    empty = 0
                    yield page
                    continue
                empty += 1
                if empty > EMPTY_FETCHES:
                    raise BusUnavailable("a partition cannot be read to its end", topic=place.topic)
        finally:
            await consumer.stop()

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        with _translated():
            found = await self._admin.list_consumer_group_offsets(group)
        return {
            place.partition: one.offset
            for place, one in found.items()
            if place.topic == topic and one.offset != _NO_OFFSET
        }

    async def members(self, groups: Sequence[str]) -> set[str]:
        with _translated():
            answers = await self._admin.describe_consumer_groups(list(groups))
        return {group[1] for answer in answers for group in answer.groups if group[5]}

    async def prepare(self, topic: Topic, partitions: int) -> None:
        require([topic.name], self._partitions)
        if (found := self._partitions[topic.name]) != partitions:
            raise Misconfigured(
                "the topic has another number of partitions than at the source: studies would move",
                topic=topic.name,
                source=partitions,
                target=found,
            )

    async def append(self, place: TopicPartition, records: Sequence[StoredRecord]) -> None:
        with _translated():
            producer = await self._producing()
            sent = [
                await producer.send(
                    place.topic,
                    one.value,
                    key=one.key,
                    partition=place.partition,
                    timestamp_ms=one.timestamp_ms,
                    headers=list(one.headers),
                )
                for one in records
            ]
            for each in sent:
                await each

    async def start_group(self, group: str, topic: str, offsets: dict[int, int]) -> None:
        consumer = AIOKafkaConsumer(
            group_id=group,
            enable_auto_commit=False,
            request_timeout_ms=REQUEST_MS,
            **connection(self._settings),
        )
        places = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}
        try:
            with _translated():
                await consumer.start()
                consumer.assign(list(places))
                await consumer.commit(places)
        finally:
            await consumer.stop()

    async def close(self) -> None:
        if self._producer is not None:
            await self._producer.stop()
        await self._consumer.stop()
        await self._admin.close()

    async def _producing(self) -> AIOKafkaProducer:
        if self._producer is None:
            # Idempotent: what is retried stays in order and is there once, so that a copy is always a prefix.
            self._producer = AIOKafkaProducer(
                acks="all",
                enable_idempotence=True,
                request_timeout_ms=REQUEST_MS,
                max_request_size=4 << 20,
                **connection(self._settings),
            )
            await self._producer.start()
        return self._producer


def _stored(record: object) -> StoredRecord:
    one: Any = record
    return StoredRecord(
        one.topic, one.partition, one.offset, one.timestamp, one.key, tuple(one.headers), one.value
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the client become ours."""
    try:
        yield
    except IsocenterError:
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        raise BusUnavailable("the cluster cannot be reached", cause=type(error).__name__) from None
