"""The few names of aiokafka that the bus uses, typed here because the package ships no py.typed marker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from dataclasses import dataclass
    from typing import Any, NamedTuple

    class TopicPartition(NamedTuple):
        topic: str
        partition: int

    class RecordMetadata(NamedTuple):
        topic: str
        partition: int
        topic_partition: TopicPartition
        offset: int
        timestamp: int | None
        timestamp_type: int
        log_start_offset: int | None

    @dataclass
    class ConsumerRecord:
        topic: str
        partition: int
        offset: int
        timestamp: int
        timestamp_type: int
        key: bytes | None
        value: bytes | None
        checksum: int | None
        serialized_key_size: int
        serialized_value_size: int
        headers: Sequence[tuple[str, bytes | None]]

    class ConsumerRebalanceListener:
        def on_partitions_revoked(self, revoked: set[TopicPartition]) -> object: ...
        def on_partitions_assigned(self, assigned: set[TopicPartition]) -> object: ...

    class KafkaError(RuntimeError): ...

    class CommitFailedError(KafkaError): ...

    class IllegalStateError(KafkaError): ...

    class ProducerClosed(KafkaError): ...

    class KafkaConnectionError(KafkaError): ...

    class KafkaTimeoutError(KafkaError): ...

    class UnknownTopicOrPartitionError(KafkaError): ...

    class MessageSizeTooLargeError(KafkaError): ...

    class ConsumerStoppedError(Exception): ...

    class IllegalOperation(Exception): ...

    class DefaultPartitioner:
        def __call__(self, key: bytes | None, all_partitions: list[int], available: list[int]) -> int: ...

    AIOKafkaAdminClient: Callable[..., Any]
    AIOKafkaConsumer: Callable[..., Any]
    AIOKafkaProducer: Callable[..., Any]

else:
    from aiokafka import (
        AIOKafkaConsumer,
        AIOKafkaProducer,
        ConsumerRebalanceListener,
        ConsumerRecord,
        TopicPartition,
    )
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import (
        CommitFailedError,
        ConsumerStoppedError,
        IllegalOperation,
        IllegalStateError,
        KafkaConnectionError,
        KafkaError,
        KafkaTimeoutError,
        MessageSizeTooLargeError,
        ProducerClosed,
        UnknownTopicOrPartitionError,
    )
    from aiokafka.partitioner import DefaultPartitioner
    from aiokafka.structs import RecordMetadata

__all__ = [
    "AIOKafkaAdminClient",
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "CommitFailedError",
    "ConsumerRebalanceListener",
    "ConsumerRecord",
    "ConsumerStoppedError",
    "DefaultPartitioner",
    "IllegalOperation",
    "IllegalStateError",
    "KafkaConnectionError",
    "KafkaError",
    "KafkaTimeoutError",
    "MessageSizeTooLargeError",
    "ProducerClosed",
    "RecordMetadata",
    "TopicPartition",
    "UnknownTopicOrPartitionError",
]
