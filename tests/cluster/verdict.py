"""What must be true of a cluster after every fault, read from its engines and not from its services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from testbed.cluster import Cluster, Replica
from tests.faults import judge

from isocenter.common.engines import Engines
from isocenter.common.errors import InvalidEvent, UnknownEventType
from isocenter.common.events.codec import decode
from isocenter.common.events.models import StudySettled
from isocenter.common.index.ports import Index
from isocenter.common.settings import KafkaSettings, KeySettings, MongoSettings, PlatformSettings, S3Settings

WAITING = (
    "isocenter_bus_consumer_lag",
    "isocenter_bus_parked",
    "isocenter_index_outbox",
    "isocenter_index_receiving",
)
"""Beginnings of the metrics that speak of studies on their way."""


def engines_of(cluster: Cluster, database: str | None = None) -> Engines:
    """The cluster's engines for this process, another database for a rebuilt index."""
    given = cluster.environment
    database = database or given["ISOCENTER_MONGO_DATABASE"]
    return Engines(
        PlatformSettings(data_dir=cluster.folder / "test", site_key_file=cluster.key_file),
        KafkaSettings(bootstrap=cluster.kafka.bootstrap, replication_factor=1, min_insync_replicas=1),
        MongoSettings(
            uri=given["ISOCENTER_MONGO_URI"], database=database or given["ISOCENTER_MONGO_DATABASE"]
        ),
        S3Settings(
            endpoint=cluster.s3.endpoint,
            bucket=cluster.bucket,
            access_key=cluster.s3.access_key,
            secret_key=cluster.s3.secret_key,
        ),
        KeySettings(file=cluster.wrapping_key_file, database=given["ISOCENTER_MONGO_DATABASE"]),
    )


@asynccontextmanager
async def open_index(cluster: Cluster, database: str | None = None) -> Any:
    index = await engines_of(cluster, database).open_index()
    try:
        yield index
    finally:
        await index.close()


@dataclass
class Indexed:
    """Acknowledged instances against the index."""

    missing: list[str] = field(default_factory=list)
    """SOP Instance UIDs that were acknowledged and are not in the index."""
    twice: list[str] = field(default_factory=list)
    """Those that are in it more than once."""


async def compare(index: Index, studies: dict[str, dict[str, str]]) -> Indexed:
    """`studies` as the sender heard: study -> SOP Instance UID -> digest."""
    found = Indexed()
    for study, sops in studies.items():
        counted = Counter([record.sop_instance_uid async for record in index.instances(study)])
        found.missing += [sop for sop in sops if sop not in counted]
        found.twice += [sop for sop, times in counted.items() if times > 1]
    return found


def out_of_order(cluster: Cluster) -> list[str]:
    """Study keys whose settled versions are not 1, 2, 3 ... in the order of their partition.

    A repeated event (same id) is no fault: delivery is at least once.
    """
    versions: dict[str, list[int]] = {}
    seen: set[str] = set()
    for headers, value in _records(cluster.kafka.bootstrap, "imaging.study.v1"):
        try:
            event = decode(headers, value)
        except (InvalidEvent, UnknownEventType):
            continue
        if isinstance(event.data, StudySettled) and event.id not in seen:
            seen.add(event.id)
            versions.setdefault(event.subject, []).append(event.data.version)
    return [key for key, found in versions.items() if found != list(range(1, len(found) + 1))]


def _records(bootstrap: str, topic: str) -> Iterator[tuple[list[tuple[str, bytes]], bytes]]:
    """Everything that is in the topic now, partition by partition, read with a client that is not ours."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "judge", "enable.auto.commit": False})
    try:
        for number in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
            partition = TopicPartition(topic, number)
            first, end = consumer.get_watermark_offsets(partition, timeout=20)
            if first == end:
                continue
            consumer.assign([TopicPartition(topic, number, first)])
            position = first
            while position < end:
                message = consumer.poll(20)
                if message is None or message.error():
                    raise RuntimeError(f"{topic}[{number}] could not be read at {position} of {end}")
                position = (message.offset() or 0) + 1
                given = dict(message.headers() or [])
                yield [(k, v) for k, v in given.items() if isinstance(v, bytes)], message.value() or b""
    finally:
        consumer.close()


def waiting(cluster: Cluster) -> dict[str, float]:
    """Metric -> sum over the replicas that answer, and `unready`: replicas that do not answer, or say no."""
    found: dict[str, float] = {"unready": 0.0}
    with ThreadPoolExecutor(len(cluster.replicas)) as together:
        for ready, text in together.map(_said, cluster.replicas):
            found["unready"] += not ready
            for name, value in _samples(text):
                found[name] = found.get(name, 0.0) + value
    return found


def _said(replica: Replica) -> tuple[bool, str]:
    """Whether it is ready, and its metrics."""
    try:
        return replica.ready(), replica.health("/metrics")[1]
    except OSError:
        return False, ""


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(text):
        if family.name.startswith(WAITING):
            for sample in family.samples:
                yield family.name, sample.value


def committed_lag(bootstrap: str, group: str, topic: str) -> int:
    """Records that the group has not committed, asked with a client that is not ours."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        wanted = [TopicPartition(topic, number) for number in partitions]
        lag = 0
        for each in consumer.committed(wanted, timeout=10):
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, each.partition), timeout=10)
            lag += end - (each.offset if each.offset >= 0 else first)
        return lag
    finally:
        consumer.close()


async def held(cluster: Cluster) -> judge.Held:
    """Every object of the bucket, read whole."""
    return await judge.read_engines(engines_of(cluster))


async def dump(cluster: Cluster, database: str | None = None) -> list[str]:
    async with open_index(cluster, database) as index:
        return [line async for line in index.dump()]


async def states(cluster: Cluster) -> dict[str, tuple[bool, int]]:
    async with open_index(cluster) as index:
        return await judge.states(index)
