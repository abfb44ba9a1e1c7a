"""A Kafka cluster as a migration sees it. Topics are never created from here.

Needs Read on the topics and on the consumer groups of the platform, and as a target Write on the topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from aiokafka.errors import for_code  # type: ignore[import-untyped] # no py.typed
from aiokafka.protocol.admin import DescribeGroupsRequest_v2  # type: ignore[import-untyped] # as above
from aiokafka.protocol.api import Request  # type: ignore[import-untyped] # as above

from isocenter.cli.migration.iterating import closing
from isocenter.common.bus.inspect import StoredRecord
from isocenter.common.bus.kafka import (
    AIOKafkaAdminClient,
    AIOKafkaConsumer,
    AIOKafkaProducer,
    KafkaError,
    TopicPartition,
)
from isocenter.common.bus.kafka_options import client_options, producer_options
from isocenter.common.bus.kafka_producer import stop_producer
from isocenter.common.bus.provision import require
from isocenter.common.bus.records import REPLAYED, parse_ident
from isocenter.common.errors import BusUnavailable, IsocenterError, Misconfigured
from isocenter.common.events.topics import Topic
from isocenter.common.settings import KafkaSettings

CLIENT = "isocenter-migrate"
PAGE = 500
FETCH_MS = 1_000
EMPTY_FETCHES = 30
"""Fetches that bring nothing before a read is given up."""
APPEND_SECONDS = 60.0
COORDINATOR_SECONDS = 30.0
COORDINATOR_PAUSE = 0.2
_NO_OFFSET = -1


class _DescribeGroups(Request[DescribeGroupsRequest_v2]):  # type: ignore[misc] # aiokafka is untyped
    """aiokafka's own asks in version 3 and reads the answer as version 2, which fails for a group with
    members.
    """

    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([self._group])


class KafkaEvents:
    """See `isocenter.cli.migration.events.EventLog`. Use `open`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin = AIOKafkaAdminClient(**client_options(settings, CLIENT))
        self._asking = self._consumer()
        self._readers: list[Any] = []
        self._producer: Any = None
        self._partitions: dict[str, int] = {}

    @classmethod
    async def open(cls, settings: KafkaSettings) -> KafkaEvents:
        """Raises Misconfigured, BusUnavailable."""
        log = cls(settings)
        try:
            await log.start()
        except BaseException:
            await log.close()
            raise
        return log

    async def start(self) -> None:
        with _told():
            await self._admin.start()
            await self._asking.start()
            for topic in await self._admin.describe_topics():
                if not topic["error_code"]:
                    self._partitions[topic["topic"]] = len(topic["partitions"])

    async def partitions(self, topic: str) -> int:
        return self._partitions.get(topic, 0)

    async def bounds(self, place: TopicPartition) -> tuple[int, int]:
        with _told():
            first, end = await asyncio.gather(
                self._asking.beginning_offsets([place]), self._asking.end_offsets([place])
            )
        return int(first[place]), int(end[place])

    async def read(self, place: TopicPartition, start: int, end: int) -> AsyncIterator[list[StoredRecord]]:
        if start >= end:
            return
        reader = await self._reader()
        try:
            with _told():
                reader.assign([place])
                reader.seek(place, start)
            empty = 0
            while True:
                with _told():
                    # Behind the last record may stand marks of transactions: they move the position only.
                    if await reader.position(place) >= end:
                        return
                    found = await reader.getmany(place, timeout_ms=FETCH_MS, max_records=PAGE)
                page = [_stored(record) for record in found.get(place, ()) if record.offset < end]
                empty = 0 if page else empty + 1
                if page:
                    yield page
                elif empty > EMPTY_FETCHES:
                    raise BusUnavailable("a partition cannot be read to its end", topic=place.topic)
        finally:
            reader.unsubscribe()
            self._readers.append(reader)

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        found = await _patiently(lambda: self._admin.list_consumer_group_offsets(group))
        return {
            place.partition: one.offset
            for place, one in found.items()
            if place.topic == topic and one.offset != _NO_OFFSET
        }

    async def members(self, groups: Sequence[str]) -> set[str]:
        return {group for group in groups if await _patiently(partial(self._has_members, group))}

    async def prepare(self, topic: Topic, partitions: int) -> None:
        require([topic.name], self._partitions)
        if (found := self._partitions[topic.name]) != partitions:
            raise Misconfigured(
                "the topic has another number of partitions than at the source: studies would change theirs",
                topic=topic.name,
                source=partitions,
                target=found,
            )

    async def append(self, place: TopicPartition, records: Sequence[StoredRecord]) -> None:
        with _told():
            async with asyncio.timeout(APPEND_SECONDS):
                producer = await self._producing()
                sent = [
                    await producer.send(
                        place.topic,
                        # The client writes no record of neither key nor value, and no header without a value.
                        one.value if one.key is not None else one.value or b"",
                        key=one.key,
                        partition=place.partition,
                        timestamp_ms=one.timestamp_ms,
                        headers=[(name, value) for name, value in one.headers if value is not None],
                    )
                    for one in records
                ]
                for each in sent:
                    await each

    async def replayed(self, place: TopicPartition) -> set[int]:
        """From the notes that stand in the topic itself: see `isocenter.common.bus.kafka_inspect`."""
        found: set[int] = set()
        async with closing(self.read(place, *await self.bounds(place))) as pages:
            async for page in pages:
                for record in page:
                    ident = parse_ident(record.header(REPLAYED) or "")
                    if ident is not None and ident[1] == place.partition:
                        found.add(ident[2])
        return found

    async def mark_replayed(self, place: TopicPartition, offset: int) -> None:
        note = f"{place.topic}/{place.partition}/{offset}".encode()
        with _told():
            async with asyncio.timeout(APPEND_SECONDS):
                producer = await self._producing()
                await producer.send_and_wait(
                    place.topic, None, b"", place.partition, headers=[(REPLAYED, note)]
                )

    async def start_group(self, group: str, topic: str, offsets: dict[int, int]) -> None:
        consumer = self._consumer(group)
        places = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}
        try:
            with _told():
                await consumer.start()
                consumer.assign(list(places))
                # The coordinator takes this only from a group without members.
                await consumer.commit(places)
        finally:
            await consumer.stop()

    async def close(self) -> None:
        if self._producer is not None:
            await stop_producer(self._producer)
        for each in (*self._readers, self._asking):
            await each.stop()
        await self._admin.close()

    async def _has_members(self, group: str) -> bool:
        node = await self._admin.find_coordinator(group)
        answer = await self._admin._send_request(_DescribeGroups(group), node)  # noqa: SLF001 - as its own methods do
        ((code, _, _, _, _, members),) = answer.groups
        if code:
            raise for_code(code)
        return bool(members)

    async def _reader(self) -> Any:
        """A consumer for one partition at a time; two partitions are read in step, so there are several."""
        if self._readers:
            return self._readers.pop()
        reader = self._consumer()
        try:
            with _told():
                await reader.start()
        except BaseException:
            await reader.stop()
            raise
        return reader

    def _consumer(self, group: str | None = None) -> Any:
        return AIOKafkaConsumer(
            **client_options(self._settings, CLIENT),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )

    async def _producing(self) -> Any:
        if self._producer is None:
            # Idempotent: what is sent again stays in order and is there once, so that a copy is a prefix.
            producer = AIOKafkaProducer(**producer_options(self._settings, CLIENT))
            self._producer = producer
            await producer.start()
        return self._producer


def _stored(record: Any) -> StoredRecord:
    return StoredRecord(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        tuple(record.headers),
        record.value,
    )


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """A cluster that has never had a group gets ready to have some when it is first asked."""
    until = time.monotonic() + COORDINATOR_SECONDS
    while True:
        try:
            return await ask()
        except KafkaError as error:
            if not getattr(error, "retriable", False) or time.monotonic() > until:
                raise BusUnavailable("the cluster did not answer", cause=type(error).__name__) from None
        await asyncio.sleep(COORDINATOR_PAUSE)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the client become ours."""
    try:
        yield
    except IsocenterError:
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        cause = type(error).__name__
    else:
        return
    raise BusUnavailable("the cluster did not answer", cause=cause)
