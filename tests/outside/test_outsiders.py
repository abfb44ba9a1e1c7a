"""Another system's programs against the platform's bus, on a real broker."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from testbed.cache import CACHE, apt_install
from testbed.jre import java
from testbed.kafka import VERSION, install
from tests.outside.conftest import ROOT, Outsider, or_skip

from isocenter.common.bus.admin import connect
from isocenter.common.bus.client import Bus
from isocenter.common.bus.factory import KafkaTransport
from isocenter.common.bus.provision import TopicState
from isocenter.common.clock import SystemClock
from isocenter.common.events.codec import decode, encode
from isocenter.common.events.models import (
    CloudEvent,
    LocationKind,
    SettleReason,
    StudyAnnounced,
    StudySettled,
    StudyUpdated,
)
from isocenter.common.events.topics import dlq_topic, retry_topic
from isocenter.common.settings import KafkaSettings
from isocenter.common.telemetry import noop

INBOUND = "inbound.study.v1"
STUDIES = "imaging.study.v1"
CLOCK = SystemClock()
PAGE = (ROOT / "docs" / "event-contract.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## For other systems")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"```sh\n(.*?)```", SECTION, flags=re.DOTALL)
NO_LEADER_YET = {
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
READING = ("subscribe.py", "kcat -C")
WRITING = ("announce.py", "kcat -P", "Announce.java")
PAGE_KEYS = {f"1.2.826.0.1.3680043.10.54321.{number}".encode() for number in (1, 2, 3)}
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def new_key() -> str:
    """A study_key of nobody."""
    number = uuid.uuid4().int
    return "".join(ALPHABET[number >> 5 * place & 31] for place in range(26))


def settled(key: str, version: int) -> CloudEvent:
    data = StudySettled(
        study_key=key,
        version=version,
        reason=SettleReason.QUIET,
        series=1,
        instances=version * 2,
        size_bytes=3,
        modalities=["CT"],
        revision=f"revisions/{key}/{version}",
        manifests=[],
        settled_at=CLOCK.now(),
    )
    return CloudEvent(
        id=CLOCK.new_id(), source="/isocenter/indexer", time=CLOCK.now(), data=data, sequence=version
    )


@asynccontextmanager
async def running(
    settings: KafkaSettings, service: str, collect: Callable[[CloudEvent], None]
) -> AsyncIterator[Bus]:
    """A bus that reads announcements in a group of its own."""

    async def handle(event: CloudEvent) -> None:
        collect(event)

    group = f"{service}.announced"
    async with connect(settings) as cluster:
        copies = [TopicState(name(INBOUND, group), 1, 1) for name in (retry_topic, dlq_topic)]
        await cluster.settle({each.name: each for each in copies})
    bus = KafkaTransport(settings).bus(service, noop(service))
    bus.subscribe("announced", INBOUND, {StudyAnnounced: handle})
    await bus.start()
    try:
        yield bus
    finally:
        await bus.stop()


@asynccontextmanager
async def publishing(settings: KafkaSettings) -> AsyncIterator[Bus]:
    bus = KafkaTransport(settings).bus("outside", noop("outside"))
    await bus.start()
    try:
        yield bus
    finally:
        await bus.stop()


async def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


def end_of(consumer: Consumer, place: TopicPartition) -> int:
    """The offset that the next record gets. A partition that was just made has no leader for a moment."""
    while True:
        try:
            return consumer.get_watermark_offsets(place, timeout=10)[1]
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER_YET:
                raise


def read_all(bootstrap: str, topic: str) -> list[Message]:
    """What is on a topic now, without a group."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "none", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {number: end_of(consumer, TopicPartition(topic, number)) for number in partitions}
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found: list[Message] = []
        while len(found) < sum(ends.values()):
            message = consumer.poll(10)
            assert message is not None, f"{topic}: {len(found)} of {ends}"
            assert message.error() is None
            found.append(message)
        return found
    finally:
        consumer.close()


def lag(bootstrap: str, group: str) -> int:
    """Records of the studies' topic that the group has not committed."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(STUDIES, timeout=10).topics[STUDIES].partitions
        places = consumer.committed([TopicPartition(STUDIES, number) for number in partitions], timeout=10)
        return sum(end_of(consumer, place) - max(0, place.offset) for place in places)
    finally:
        consumer.close()


def partitions_of(messages: Iterable[Message]) -> dict[str, int]:
    return {
        key.decode(): partition
        for message in messages
        if isinstance(key := message.key(), bytes) and (partition := message.partition()) is not None
    }


def produce(bootstrap: str, topic: str, keys: Iterable[str], **options: Any) -> dict[str, int]:
    """Where a librdkafka client puts records of these keys."""
    placed: dict[str, int] = {}

    def on_delivery(error: object, message: Message) -> None:
        assert error is None, error
        placed.update(partitions_of([message]))

    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", **options})
    for key in keys:
        producer.produce(topic, b"x", key=key, on_delivery=on_delivery)
    producer.flush(30)
    return placed


async def test_a_subscriber_acts_once_on_each_version_whatever_comes(
    settings: KafkaSettings, outsider: Outsider
) -> None:
    key, group = new_key(), f"viewer{uuid.uuid4().hex[:8]}.studies"
    first, second = settled(key, 1), settled(key, 2)
    updated = CloudEvent(
        id=CLOCK.new_id(),
        source="/isocenter/indexer",
        time=CLOCK.now(),
        data=StudyUpdated(study_key=key, version=1, updated_at=CLOCK.now()),
    )
    async with publishing(settings) as bus:
        for event in (first, updated, second, first, second):
            await bus.publish(event)
    _, body = encode(settled(key, 3))
    future = json.loads(body) | {"reason": "telepathy", "new_field": {"a": 1}}
    envelope = {
        "specversion": "1.0",
        "id": "from-the-future",
        "source": "/isocenter/indexer",
        "type": StudySettled.event_type,
        "dataschema": "urn:isocenter:schema:org.isocenter.imaging.study.settled:1.9",
        "data": future,
    }
    producer = Producer({"bootstrap.servers": outsider.bootstrap, "partitioner": "murmur2_random"})
    structured: list[tuple[str, str | bytes | None]] = [("content-type", "application/cloudevents+json")]
    producer.produce(STUDIES, b"\xff no event", key=key)
    producer.produce(STUDIES, json.dumps(envelope).encode(), key=key, headers=structured)
    producer.flush(30)

    done = [each for each in outsider.subscribe(group) if each["study_key"] == key]
    committed = lag(outsider.bootstrap, group)
    # Another group reads everything once more; what was done stands in the same state.
    (outsider.folder / f"{group}.sqlite").rename(outsider.folder / f"{group}-2.sqlite")
    replayed = outsider.subscribe(f"{group}-2")

    assert [(1, "quiet", "1.0"), (2, "quiet", "1.0"), (3, "unknown", "1.9")] == [
        (each["version"], each["reason"], each["schema"]) for each in done
    ]
    assert 0 == committed
    assert [] == [each for each in replayed if each["study_key"] == key]


async def test_announcements_are_read_in_both_modes_and_bad_ones_are_dead_letters(
    settings: KafkaSettings, outsider: Outsider
) -> None:
    service = f"t{uuid.uuid4().hex[:8]}"
    uids = {"binary": new_uid(), "structured": new_uid()}
    bad = new_uid()
    seen: dict[str, CloudEvent] = {}

    def collect(event: CloudEvent) -> None:
        assert isinstance(event.data, StudyAnnounced)
        seen[event.data.study_instance_uid] = event

    async with running(settings, service, collect):
        placed = [
            await asyncio.to_thread(outsider.announce, uid, "--mode", mode, "--instances", "3")
            for mode, uid in uids.items()
        ]
        repeated = await asyncio.to_thread(outsider.announce, uids["binary"], "--instances", "3")
        await asyncio.to_thread(
            outsider.announce, bad, kind="dicomweb", ref="https://user:hunter2@pacs.example/dicom-web"
        )
        await asyncio.to_thread(outsider.announce, f"{bad}.01")
        group = f"{service}.announced"
        letters: list[Message] = []

        def all_there() -> bool:
            letters[:] = read_all(outsider.bootstrap, dlq_topic(INBOUND, group))
            return set(uids.values()) <= seen.keys() and {bad, f"{bad}.01"} <= partitions_of(letters).keys()

        await eventually(all_there)

    assert placed[0]["id"] == repeated["id"]
    for uid in uids.values():
        data = seen[uid].data
        assert isinstance(data, StudyAnnounced)
        assert (LocationKind.S3, "s3://bucket/prefix", 3, "RIS_EAST") == (
            data.location.kind,
            data.location.ref,
            data.instances,
            data.sender,
        )
        assert ("/hospital-east/ris", "") == (seen[uid].source, seen[uid].subject)
    ours = [each for each in letters if (each.key() or b"").startswith(bad.encode())]
    for letter in ours:
        headers = dict(letter.headers() or ())
        assert (b"permanent", b"InvalidEvent", INBOUND.encode()) == (
            headers["x-reason"],
            headers["x-error"],
            headers["x-origin-topic"],
        )
        assert b"hunter2" not in b" ".join(value for value in headers.values() if isinstance(value, bytes))


async def test_a_murmur2_client_and_the_bus_put_200_studies_on_the_same_partitions(
    settings: KafkaSettings, outsider: Outsider
) -> None:
    keys = [new_key() for _ in range(200)]
    scratch = f"scratch{uuid.uuid4().hex[:8]}"
    async with connect(settings) as cluster:
        await cluster.settle({scratch: TopicState(scratch, 12, 1)})
    async with publishing(settings) as bus:
        await asyncio.gather(*(bus.publish(settled(key, 1)) for key in keys))
    published = partitions_of(read_all(outsider.bootstrap, STUDIES))
    ours = {key: published[key] for key in keys}

    assert ours == produce(outsider.bootstrap, scratch, keys, partitioner="murmur2_random")
    # What the page warns of: librdkafka's own default.
    theirs = produce(outsider.bootstrap, scratch, keys)
    assert 100 > sum(theirs[key] == ours[key] for key in keys)


def test_a_batch_of_announcements_may_be_larger_than_one_may_be(outsider: Outsider) -> None:
    """Kafka's limit counts the batch, and librdkafka cannot split one that is refused."""
    uid = new_uid()
    value = json.dumps(
        {
            "study_instance_uid": uid,
            "location": {"kind": "s3", "ref": f"s3://b/{'x' * 900}"},
            "sender": "RIS_EAST",
        }
    ).encode()
    faults: list[object] = []
    producer = Producer(
        {"bootstrap.servers": outsider.bootstrap, "linger.ms": 500, "enable.idempotence": True}
    )
    for number in range(200):
        headers: list[tuple[str, str | bytes | None]] = [
            ("ce_specversion", "1.0"),
            ("ce_id", f"{uid}-{number}"),
            ("ce_source", "/hospital-east/ris"),
            ("ce_type", StudyAnnounced.event_type),
            ("ce_time", "2026-01-01T12:00:00Z"),
        ]
        producer.produce(
            INBOUND, value, key=uid, headers=headers, on_delivery=lambda error, _: faults.append(error)
        )
    assert 0 == producer.flush(30)
    assert [None] * 200 == faults


def test_the_page_has_a_command_for_each_way() -> None:
    ways = (*READING, *WRITING)

    assert sorted(ways) == sorted(way for each in COMMANDS for way in ways if way in each)


def test_the_java_of_the_page_is_that_of_the_example() -> None:
    (shown,) = re.findall(r"```java\n(.*?)```", SECTION, flags=re.DOTALL)
    example = textwrap.dedent((ROOT / "deploy/examples/Announce.java").read_text())

    assert textwrap.indent(shown, " " * 8) in example


@pytest.mark.parametrize("way", READING)
async def test_the_reading_commands_of_the_page_work(
    way: str, settings: KafkaSettings, outsider: Outsider
) -> None:
    key = new_key()
    async with publishing(settings) as bus:
        await bus.publish(settled(key, 1))

    done = outsider.run("sh", "-c", f"{prepared(way, outsider)}\n{command_of(way)}")

    (line,) = (each for each in done.splitlines() if key in each)
    assert key == json.loads(line[line.index("{") :])["study_key"]


@pytest.mark.parametrize("way", WRITING)
def test_the_announcing_commands_of_the_page_work(way: str, outsider: Outsider) -> None:
    environment = prepared(way, outsider)
    before = announced(outsider)

    outsider.run("sh", "-c", f"{environment}\n{command_of(way)}")

    (new,) = announced(outsider)[len(before) :]
    assert "/hospital-east/ris" == new.source
    assert isinstance(new.data, StudyAnnounced)


def command_of(way: str) -> str:
    (command,) = (each for each in COMMANDS if way in each)
    return str(command)


def prepared(way: str, outsider: Outsider) -> str:
    """What a shell needs for the command; skips where this machine cannot run it."""
    (outsider.folder / "deploy").symlink_to(ROOT / "deploy")
    (outsider.folder / "libs").symlink_to(CACHE / f"kafka-{VERSION}")
    path = str(Path(sys.executable).parent)
    if "kcat" in way:
        or_skip(lambda: apt_install("kcat"))
    if "java" in way:
        binary = or_skip(java)
        modules = subprocess.run([binary, "--list-modules"], capture_output=True, text=True, check=True)
        if "jdk.compiler" not in modules.stdout:
            pytest.skip("NOT RUN: the Java here is a runtime without a compiler")
        or_skip(install)
        path = f"{binary.parent}:{path}"
    return f'PATH="{path}:$PATH" KAFKA_HOME="{outsider.folder}"; export PATH KAFKA_HOME'


def announced(outsider: Outsider) -> list[CloudEvent]:
    """What the platform makes of the page's announcements that are there now, in the order of arrival."""
    found = [
        message
        for message in read_all(outsider.bootstrap, INBOUND)
        if (key := message.key()) is not None and key in PAGE_KEYS
    ]
    return [
        decode(
            [(name, raw) for name, raw in dict(message.headers() or ()).items() if isinstance(raw, bytes)],
            message.value(),
        )
        for message in sorted(found, key=lambda message: message.timestamp()[1])
    ]
