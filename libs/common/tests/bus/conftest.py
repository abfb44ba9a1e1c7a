"""Backends under one conformance suite: the embedded log, and Apache Kafka.

ISOCENTER_TEST_KAFKA_BOOTSTRAP names a running cluster to use instead of one of the test bed.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]  # no py.typed
from faststream.kafka import KafkaBroker
from faststream.middlewares import AckPolicy
from pydantic import SecretStr

from isocenter.common.bus.delivery import DeliveryPolicy
from isocenter.common.bus.embedded import EmbeddedKafkaBroker
from isocenter.common.bus.factory import Bus, EmbeddedTransport, KafkaTransport
from isocenter.common.bus.limits import DlqLimit
from isocenter.common.bus.mongo_parking import MongoParking
from isocenter.common.bus.parking import MemoryParking, Parking
from isocenter.common.clock import SystemClock
from isocenter.common.events.codec import encode
from isocenter.common.events.models import CloudEvent, TransferClosed
from isocenter.common.events.models import Protocol as Arrived
from isocenter.common.events.topics import COPY_HEADER_BYTES, MAX_MESSAGE_BYTES, dlq_topic, retry_topic
from isocenter.common.index.records import OutboxEntry
from isocenter.common.settings import KafkaSettings, MongoSettings
from isocenter.common.telemetry import Telemetry, noop

KAFKA = os.environ.get("ISOCENTER_TEST_KAFKA_BOOTSTRAP")
QUICK = DeliveryPolicy(
    tries=2,
    backoff=0.001,
    backoff_max=0.01,
    retry_delay=0.02,
    retry_rounds=3,
    retry_backoff_max=0.05,
    transient_patience=30.0,
    move_backoff=0.02,
)
CLOCK = SystemClock()
_ids = itertools.count()


def study(number: int) -> str:
    """An opaque key; the same number gives the same key."""
    return f"{'abcdefghijklmnopqrstuvwxyz'[number]}" * 26


def event(key: int = 0, name: str = "") -> CloudEvent:
    """An event of study `key`; `name` comes back as `data.transfer_id`."""
    data = TransferClosed(
        study_key=study(key),
        transfer_id=name or f"t{next(_ids)}",
        protocol=Arrived.DIMSE,
        sender="SENDER",
        instances=1,
        aborted=False,
        closed_at=CLOCK.now(),
    )
    return CloudEvent(id=CLOCK.new_id(), source="/isocenter/ingest", time=CLOCK.now(), data=data)


def entry(topic: str, key: int = 0, name: str = "", headers: Mapping[str, str] | None = None) -> OutboxEntry:
    """The same as a stored entry, for a topic of the test's own."""
    one = event(key, name)
    encoded, body = encode(one)
    return OutboxEntry(
        event_id=one.id,
        topic=topic,
        key=one.subject,
        headers={k: v.decode() for k, v in encoded} | dict(headers or {}),
        body=body,
    )


class Backend(Protocol):
    """One way that events travel. `restart` is what a new process would find."""

    policy: DeliveryPolicy
    graceful: float
    topics: list[str]
    """Made by this test."""

    async def topic(self, partitions: int = 1, groups: tuple[str, ...] = ()) -> str: ...
    async def restart(self) -> None: ...
    def raw(self) -> KafkaBroker: ...
    def bus(self, service: str = "svc", telemetry: Telemetry | None = None) -> Bus: ...
    def waiting_sets(self) -> Parking: ...
    async def close(self) -> None: ...


@dataclass
class Embedded:
    path: Path
    policy: DeliveryPolicy = QUICK
    limit: Callable[[], DlqLimit] = DlqLimit
    graceful: float = 10.0
    transport: EmbeddedTransport = field(init=False)
    brokers: list[Any] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.transport = EmbeddedTransport(
            self.path, policy=self.policy, limit=self.limit, graceful_seconds=self.graceful
        )
        self.transport.open()

    async def topic(self, partitions: int = 1, groups: tuple[str, ...] = ()) -> str:
        name = f"test.{uuid.uuid4().hex[:8]}.v1"
        self.topics.append(name)
        await self.transport.open().log.create_topic(name, partitions)
        return name

    async def restart(self) -> None:
        await self.close()
        self.open()

    def raw(self) -> KafkaBroker:
        owned = self.transport.open()
        broker = EmbeddedKafkaBroker(
            owned.log, owned.coordinator, allow_auto_create_topics=False, graceful_timeout=5, logger=None
        )
        self.brokers.append(broker)
        return broker

    def bus(self, service: str = "svc", telemetry: Telemetry | None = None) -> Bus:
        bus = self.transport.bus(service, telemetry or noop(service))
        self.brokers.append(bus)
        return bus

    def waiting_sets(self) -> Parking:
        return self.transport.open().parking

    async def close(self) -> None:
        for broker in self.brokers:
            await broker.stop()
        self.brokers.clear()
        await self.transport.close()


@dataclass
class Kafka:
    """Its parking is kept in memory here, and survives `restart` as a database would."""

    bootstrap: str
    policy: DeliveryPolicy = QUICK
    limit: Callable[[], DlqLimit] = DlqLimit
    graceful: float = 10.0
    session_ms: int = 6_000
    watch: float = 5.0
    parking: Parking = field(default_factory=MemoryParking)
    transport: KafkaTransport = field(init=False)
    brokers: list[Any] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.transport = KafkaTransport(
            KafkaSettings(bootstrap=self.bootstrap, session_timeout_ms=self.session_ms),
            parking=self.parking,
            policy=self.policy,
            limit=self.limit,
            graceful_seconds=self.graceful,
            watch_seconds=self.watch,
        )

    async def topic(self, partitions: int = 1, groups: tuple[str, ...] = ()) -> str:
        name = f"test.{uuid.uuid4().hex[:8]}.v1"
        self.topics.append(name)
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            derived = [f(name, g) for g in groups for f in (retry_topic, dlq_topic)]
            copies = {"max.message.bytes": str(MAX_MESSAGE_BYTES + COPY_HEADER_BYTES)}
            topics = [
                NewTopic(name, partitions, 1, topic_configs={"max.message.bytes": str(MAX_MESSAGE_BYTES)}),
                *(NewTopic(one, 1, 1, topic_configs=copies) for one in derived),
            ]
            wanted = {one.name for one in topics}
            async with asyncio.timeout(30):
                # A broker that has just started refuses, and tells of a new topic a moment later.
                while not wanted <= set(await admin.list_topics()):
                    await admin.create_topics(topics)
        finally:
            await admin.close()
        return name

    async def restart(self) -> None:
        await self.close()
        self.open()

    def raw(self) -> KafkaBroker:
        broker = KafkaBroker(self.bootstrap, allow_auto_create_topics=False, graceful_timeout=5, logger=None)
        self.brokers.append(broker)
        return broker

    def bus(self, service: str = "svc", telemetry: Telemetry | None = None) -> Bus:
        bus = self.transport.bus(service, telemetry or noop(service))
        self.brokers.append(bus)
        return bus

    def waiting_sets(self) -> Parking:
        return self.parking

    async def close(self) -> None:
        await asyncio.gather(*(broker.stop() for broker in self.brokers))
        self.brokers.clear()


@pytest.fixture(scope="session")
def bootstrap(request: pytest.FixtureRequest) -> str:
    if KAFKA is not None:
        return KAFKA
    server = request.getfixturevalue("kafka_server")
    if server.name != "Apache Kafka":
        pytest.skip(f"NOT RUN: {server.version} takes no idempotent producer of aiokafka's")
    return str(server.bootstrap)


@pytest.fixture(params=["embedded", "kafka"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    made: Backend
    if request.param == "kafka":
        made = Kafka(request.getfixturevalue("bootstrap"))
    else:
        made = Embedded(tmp_path / "bus.sqlite")
    yield made
    await made.close()


@pytest.fixture
async def kafka(bootstrap: str) -> AsyncIterator[Kafka]:
    made = Kafka(bootstrap)
    yield made
    await made.close()


@pytest.fixture
def kafka_of() -> Callable[[str], Kafka]:
    """A backend on another cluster."""
    return Kafka


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Embedded]:
    made = Embedded(tmp_path / "bus.sqlite")
    yield made
    await made.close()


@pytest.fixture
def mongo_parking(request: pytest.FixtureRequest) -> Callable[[], MongoParking]:
    """Makes parkings on one database: each is what another replica has."""
    uri = request.getfixturevalue("mongo_server").uri
    settings = MongoSettings(uri=SecretStr(uri), database=f"bus-{uuid.uuid4().hex[:8]}")
    return lambda: MongoParking(settings)


async def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Returns when the condition (plain or awaitable) holds; fails the test when it never does."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.005)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return eventually


@dataclass(frozen=True)
class Maker:
    """What tests build records and consumers with."""

    entry: Callable[..., OutboxEntry] = entry
    event: Callable[..., CloudEvent] = event
    study: Callable[[int], str] = study
    quick: DeliveryPolicy = QUICK

    @staticmethod
    def listen(
        broker: KafkaBroker,
        *topics: str,
        group: str = "group",
        policy: AckPolicy = AckPolicy.NACK_ON_ERROR,
        **options: Any,
    ) -> Any:
        """A subscriber straight on FastStream's broker, which hears soon of changes of its group."""
        settings = {
            "heartbeat_interval_ms": 100,
            "auto_offset_reset": "earliest",
            "no_reply": True,
            **options,
        }
        return broker.subscriber(*topics, group_id=group, ack_policy=policy, **settings)


@pytest.fixture
def make() -> Maker:
    return Maker()
