"""Where events travel: every topic as data, for provisioning, the embedded log and the documentation alike.

Names use `.` and `-` only: Kafka maps `.` and `_` to the same character in metric names. Facts about one
study whose order matters share a topic, because order exists only inside one partition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Literal

from isocenter.common.events.models import (
    EVENT_MODELS,
    Event,
    InstanceConflicted,
    InstanceRejected,
    InstancesStored,
    StageStudy,
    StudyAnnounced,
    StudyEvicted,
    StudySettled,
    StudyStaged,
    StudyUpdated,
    TransferClosed,
    UnstageStudy,
)

CleanupPolicy = Literal["delete", "compact"]

# Divisible by 1, 2, 3, 4, 6 and 12, so that any of these replica counts shares the work evenly. Changing it
# later moves studies between partitions, which breaks their order once: choose generously, change never.
PARTITIONS = 12

# A retry topic carries the few records that failed. Fewer partitions than the source, a divisor of it:
# three members can still share an outage's backlog, and idle partitions cost every broker memory and files.
RETRY_PARTITIONS = 3

# A dead-letter topic is read by people, oldest first: one partition gives one order.
DLQ_PARTITIONS = 1

# Longer than any parked record waits, so that a retry is never deleted before it was tried.
RETRY_RETENTION = timedelta(days=14)

# Time to find, understand, mend and replay: at least 30 days for a team of humans.
DLQ_RETENTION = timedelta(days=90)

# What other systems write holds DICOM UIDs: long enough to mend a broken pull, and no longer. Not below
# RETRY_RETENTION, so that its copies need not be kept longer than the original to be of use.
INBOUND_RETENTION = timedelta(days=14)

OTHER_SYSTEMS = "other systems"
"""The producer of a topic that this platform reads and never writes."""

OPERATOR = "operator"
"""Whoever runs the `isocenter` command; as a producer, what publishes for them."""

# A command that nobody carried out in a week is one that nobody waits for.
COMMAND_RETENTION = timedelta(days=7)

# `instances.stored` with 200 instances has about 100 KB; ten times that leaves room for additive fields.
MAX_MESSAGE_BYTES = 1_048_576

# A copy carries the reason and the origin in headers of its own: a record of full size must still fit.
COPY_HEADER_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is provisioned.

    Attributes:
        owner: the service that answers for the contract.
        key: what the record key holds.
        producers: services that write it, `OPERATOR`, or `OTHER_SYSTEMS`.
        consumers: consumer groups of this platform, `<service>.<handler>`; each has a retry and a dead-letter
            topic. One for all replicas and nodes of a service (docs/adr/0023).
        event_types: CloudEvents types that may appear; empty for retries and dead letters, which hold copies.
        dicom_uids: whether events here may name a study by its UID. Copies of such a topic are kept no
            longer than the topic itself.
        min_insync_replicas: with `acks=all`, how many replicas hold a record before its producer hears so.
    """

    name: str
    owner: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()
    key: str = "study_key"
    partitions: int = PARTITIONS
    retention: timedelta = timedelta(days=30)
    cleanup_policy: CleanupPolicy = "delete"
    replication_factor: int = 3
    min_insync_replicas: int = 2
    max_message_bytes: int = MAX_MESSAGE_BYTES
    dicom_uids: bool = False

    def kafka_config(self) -> dict[str, str]:
        """Topic configuration in Kafka's own names and units."""
        return {
            "cleanup.policy": self.cleanup_policy,
            "max.message.bytes": str(self.max_message_bytes),
            "min.insync.replicas": str(self.min_insync_replicas),
            "retention.ms": str(self.retention // timedelta(milliseconds=1)),
        }


def _types(*models: type[Event]) -> tuple[str, ...]:
    return tuple(model.event_type for model in models)


TOPICS: MappingProxyType[str, Topic] = MappingProxyType(
    {
        topic.name: topic
        for topic in (
            Topic(
                name="inbound.study.v1",
                owner="ingest",
                producers=(OTHER_SYSTEMS,),
                consumers=("ingest.announced",),
                event_types=_types(StudyAnnounced),
                key="any",
                retention=INBOUND_RETENTION,
                dicom_uids=True,
                # Larger than an announcement may be: Kafka compares it with a whole batch, and librdkafka
                # sends batches of up to a million bytes that it cannot split.
            ),
            Topic(
                name="imaging.instance.v1",
                owner="ingest",
                producers=("ingest",),
                consumers=("indexer.instances",),
                event_types=_types(InstancesStored, InstanceRejected, TransferClosed),
            ),
            Topic(
                name="imaging.study.v1",
                owner="indexer",
                producers=("indexer", "gpu-stager"),
                consumers=("gpu-stager.studies",),
                event_types=_types(StudySettled, StudyUpdated, InstanceConflicted, StudyStaged, StudyEvicted),
                # Other systems catch up from here after a long stop, and it is small.
                retention=timedelta(days=90),
            ),
            Topic(
                name="imaging.command.v1",
                owner="gpu-stager",
                producers=(OPERATOR,),
                consumers=("gpu-stager.commands",),
                event_types=_types(StageStudy, UnstageStudy),
                retention=COMMAND_RETENTION,
            ),
        )
    }
)


def retry_topic(topic: str, group: str) -> str:
    return f"{topic}.{group}.retry"


def retry_group(group: str) -> str:
    """The consumer group that reads a group's retry topic: its own, so that its lag is seen apart."""
    return f"{group}.retry"


def dlq_topic(topic: str, group: str) -> str:
    return f"{topic}.{group}.dlq"


def all_topics() -> dict[str, Topic]:
    """Every topic to provision: `TOPICS`, and the retry and the dead-letter topic of each consumer group."""
    return {topic.name: topic for source in TOPICS.values() for topic in (source, *derived(source))}


def topic_of(event_type: str) -> str:
    """The topic of a type. Raises KeyError for a type without a model."""
    return EVENT_MODELS[event_type].topic


def derived(source: Topic) -> Iterator[Topic]:
    """The retry and the dead-letter topic of each consumer group of a topic."""
    for group in source.consumers:
        service = group.partition(".")[0]
        yield Topic(
            name=retry_topic(source.name, group),
            owner=service,
            producers=(service,),
            consumers=(retry_group(group),),
            partitions=min(RETRY_PARTITIONS, source.partitions),
            retention=_of_copies(source, RETRY_RETENTION),
            max_message_bytes=source.max_message_bytes + COPY_HEADER_BYTES,
            dicom_uids=source.dicom_uids,
        )
        yield Topic(
            name=dlq_topic(source.name, group),
            owner=service,
            producers=(service,),
            partitions=DLQ_PARTITIONS,
            retention=_of_copies(source, DLQ_RETENTION),
            max_message_bytes=source.max_message_bytes + COPY_HEADER_BYTES,
            dicom_uids=source.dicom_uids,
        )


def _of_copies(source: Topic, retention: timedelta) -> timedelta:
    """A copy holds the bytes of the original: where those name a study, it must not outlive them."""
    return min(retention, source.retention) if source.dicom_uids else retention
