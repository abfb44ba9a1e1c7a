"""Builds buses: `EmbeddedTransport` on one SQLite file, `KafkaTransport` on a cluster.

A process opens one transport; each service in it gets a bus, a broker and consumer groups of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isocenter.common.bus.client import GRACEFUL_SECONDS, Bus, Handler, build_options
from isocenter.common.bus.delivery import DeliveryMiddleware, DeliveryPolicy, Subscription
from isocenter.common.bus.embedded import Coordinator, EmbeddedKafkaBroker, EmbeddedLog
from isocenter.common.bus.inspect import EmbeddedInspector, TopicInspector, serve_requests
from isocenter.common.bus.kafka_transport import KafkaTransport
from isocenter.common.bus.limits import DlqLimit
from isocenter.common.bus.parking import SqliteParking
from isocenter.common.clock import Clock, SystemClock
from isocenter.common.errors import BusUnavailable, Misconfigured
from isocenter.common.events.topics import (
    DLQ_PARTITIONS,
    DLQ_RETENTION,
    RETRY_PARTITIONS,
    RETRY_RETENTION,
    all_topics,
)
from isocenter.common.telemetry import Telemetry

REQUEST_SECONDS = 0.5
"""How often the owner looks for requests of other processes: the wait of `isocenter dlq replay`."""
MAINTENANCE_SECONDS = 60.0


class Transport(Protocol):
    """How events travel in this process."""

    def bus(self, service: str, telemetry: Telemetry) -> Bus: ...

    def inspector(self) -> TopicInspector: ...

    async def close(self) -> None:
        """Call it after every bus has stopped. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Owned:
    """What the process that holds the lock has open."""

    log: EmbeddedLog
    coordinator: Coordinator
    parking: SqliteParking


class EmbeddedTransport:
    """The log in one SQLite file, owned by this process from its first bus on."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        policy: DeliveryPolicy | None = None,
        limit: Callable[[], DlqLimit] = DlqLimit,
        graceful_seconds: float = GRACEFUL_SECONDS,
        max_bytes: int | None = None,
    ) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._policy = policy or DeliveryPolicy()
        self._limit = limit
        self._graceful_seconds = graceful_seconds
        self._max_bytes = max_bytes
        self._opened: Owned | None = None
        self._prepared = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def bus(self, service: str, telemetry: Telemetry) -> Bus:
        """The first bus opens the log and takes its lock.

        Raises:
            Misconfigured: another process owns the file; the message names its process id.
        """
        owned = self.open()
        delivery = DeliveryMiddleware()
        options = build_options(service, telemetry, delivery, self._graceful_seconds)
        return Bus(
            service,
            EmbeddedKafkaBroker(owned.log, owned.coordinator, **options),
            telemetry,
            delivery=delivery,
            parking=owned.parking,
            clock=self._clock,
            policy=self._policy,
            limit=self._limit,
            graceful_seconds=self._graceful_seconds,
            prepare=self.prepare,
        )

    def inspector(self) -> EmbeddedInspector:
        """Without a bus in this process it works beside the process that owns the log, or without any."""
        if self._opened is None:
            return EmbeddedInspector(self._path)
        return EmbeddedInspector(self._path, (self._opened.log, self._opened.coordinator))

    def open(self) -> Owned:
        """Raises Misconfigured as `bus` does."""
        if self._opened is None:
            log = EmbeddedLog(self._path, clock=self._clock, max_bytes=self._max_bytes)
            self._opened = Owned(log, Coordinator(log), SqliteParking(log.parked(), log.run))
        return self._opened

    async def prepare(self, subscriptions: list[Subscription]) -> None:
        """Creates the topics of the contract, and those of these subscriptions; starts the housekeeping.

        Raises:
            Misconfigured: a subscription names a topic that does not exist.
        """
        log = self.open().log
        async with self._prepared:
            for topic in all_topics().values():
                retention = topic.retention if topic.cleanup_policy == "delete" else None
                await log.create_topic(topic.name, topic.partitions, retention)
            for one in subscriptions:
                partitions = log.partitions.get(one.topic)
                if partitions is None:
                    raise Misconfigured("no such topic", topic=one.topic, group=one.group)
                retries = min(RETRY_PARTITIONS, partitions)
                if one.retry_topic not in log.partitions:
                    await log.create_topic(one.retry_topic, retries, RETRY_RETENTION)
                if one.dlq_topic not in log.partitions:
                    await log.create_topic(one.dlq_topic, DLQ_PARTITIONS, DLQ_RETENTION)
            if not self._tasks:
                self._tasks = [asyncio.create_task(self._maintain()), asyncio.create_task(self._answer())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._opened is not None:
            await self._opened.coordinator.close()
            await asyncio.to_thread(self._opened.log.close)

    async def _maintain(self) -> None:
        log = self.open().log
        while True:
            await asyncio.sleep(MAINTENANCE_SECONDS)
            with contextlib.suppress(BusUnavailable):
                await log.apply_retention()
                await log.tidy()

    async def _answer(self) -> None:
        owned = self.open()
        while True:
            with contextlib.suppress(BusUnavailable):
                await serve_requests(owned.log, owned.coordinator)
            await asyncio.sleep(REQUEST_SECONDS)


__all__ = ["Bus", "EmbeddedTransport", "Handler", "KafkaTransport", "Transport"]
