"""The producer side of the log, with the part of AIOKafkaProducer's surface that FastStream uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from isocenter.common.bus.embedded.log import EmbeddedLog, Entry
from isocenter.common.bus.kafka import (
    DefaultPartitioner,
    ProducerClosed,
    RecordMetadata,
    TopicPartition,
    UnknownTopicOrPartitionError,
)

MAX_BATCH_BYTES = 1_048_576
"""A broker's `max.message.bytes` limits a batch; aiokafka's default of 16 KiB only makes more of them."""
RECORD_OVERHEAD_BYTES = 70
Headers = Sequence[tuple[str, bytes | None]]


class Batch:
    """Records that go to one partition together."""

    def __init__(self, limit: int = MAX_BATCH_BYTES) -> None:
        self._limit = limit
        self.size = 0
        self.records: list[tuple[bytes | None, bytes | None, int | None, Headers]] = []

    def append(
        self, *, key: bytes | None, value: bytes | None, timestamp: int | None, headers: Headers = ()
    ) -> object | None:
        """Adds a record, or returns None when the batch is full and the record was not added."""
        size = RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
        size += sum(len(name) + len(content or b"") for name, content in headers)
        if self.records and self.size + size > self._limit:
            return None
        self.size += size
        self.records.append((key, value, timestamp, headers))
        return self.size

    def record_count(self) -> int:
        return len(self.records)


class EmbeddedProducer:
    """Publishes into the log: a future is done when the record is on the disk."""

    def __init__(self, log: EmbeddedLog) -> None:
        self._log = log
        self._closed = False
        self._partitioner = DefaultPartitioner()

    async def start(self) -> None:
        self._closed = False

    async def stop(self) -> None:
        await self.flush()
        self._closed = True

    async def flush(self) -> None:
        if not self._log.closed:
            await self._log.flush()

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
    ) -> asyncio.Future[RecordMetadata]:
        target = self._target(topic, key, partition)
        when = self._log.now_ms() if timestamp_ms is None else timestamp_ms
        return self._log.append(Entry(target, when, key, value, tuple(headers or ())))

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(
        self, batch: Batch, topic: str, *, partition: int | None = None
    ) -> asyncio.Future[RecordMetadata]:
        """All records of the batch in one transaction; the future holds the place of the first."""
        key = batch.records[0][0] if batch.records else None
        target = self._target(topic, key, partition)
        now = self._log.now_ms()
        futures = [
            self._log.append(Entry(target, now if when is None else when, key, value, tuple(headers)))
            for key, value, when, headers in batch.records
        ]
        for later in futures[1:]:
            later.add_done_callback(_retrieve)
        return futures[0]

    def _target(self, topic: str, key: bytes | None, partition: int | None) -> TopicPartition:
        """The partition a Kafka producer would choose (murmur2 of the key), so that order survives a move."""
        if self._closed:
            raise ProducerClosed
        count = self._log.partitions.get(topic)
        if count is None:
            raise UnknownTopicOrPartitionError(topic)
        if partition is None:
            every = list(range(count))
            partition = self._partitioner(key, every, every)
        return TopicPartition(topic, partition)


def _retrieve(future: asyncio.Future[RecordMetadata]) -> None:
    """The first future of the batch carries the error; the others must not warn about theirs."""
    if not future.cancelled():
        future.exception()
