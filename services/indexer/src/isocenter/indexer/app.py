"""Builds the service: one consumer group, the settler and the outbox relay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime

from isocenter.common.bus.client import Handler
from isocenter.common.errors import IsocenterError, Misconfigured
from isocenter.common.events.models import CloudEvent, InstancesStored, TransferClosed
from isocenter.common.index.ports import Backlog, Index
from isocenter.common.objects.vault import Vault
from isocenter.common.service import ASGIApp, Health, Ports
from isocenter.common.telemetry import Gauge, LogEvent
from isocenter.indexer.handlers import Handlers
from isocenter.indexer.outbox import OutboxRelay
from isocenter.indexer.parsers import parser_pool
from isocenter.indexer.pause import LONGEST_SECONDS, Pause, rest_seconds
from isocenter.indexer.reading import RecordReader
from isocenter.indexer.settings import IndexerSettings
from isocenter.indexer.settler import BATCH, Settler

NAME = "indexer"
_PAUSE_AFTER_ERROR = 2.0
"""Seconds between two looks at a dependency that is down."""


class Indexer:
    """See `isocenter.common.service.Service`."""

    name = NAME
    asgi: ASGIApp | None = None

    def __init__(self, settings: IndexerSettings, ports: Ports, index: Index) -> None:
        self._settings = settings
        self._ports = ports
        self._index = index
        self._pause = Pause(settings.settle_poll_seconds)
        self._due = asyncio.Event()
        self._stopping = asyncio.Event()
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._parsers = parser_pool(settings.parsers, ports.telemetry)
        vault = Vault(ports.store, ports.sealing)
        self._handlers = Handlers(
            index=index,
            records=RecordReader(vault, ports.keys, settings.describe_concurrency, self._parsers),
            policy=settings.policy,
            clock=ports.clock,
            telemetry=ports.telemetry,
            outbox_changed=self._pause.end,
        )
        self._settler = Settler(
            index=index,
            vault=vault,
            keys=ports.keys,
            clock=ports.clock,
            telemetry=ports.telemetry,
            lease_seconds=settings.lease_seconds,
            outbox_changed=self._pause.end,
        )
        self._relay = OutboxRelay(index, ports.bus.publish_entry, ports.telemetry)
        ports.bus.subscribe(
            "instances",
            InstancesStored.topic,
            {
                InstancesStored: self._then_look(self._handlers.instances_stored),
                TransferClosed: self._then_look(self._handlers.transfer_closed),
            },
        )

    async def start(self) -> None:
        await self._index.check()
        await self._ports.bus.start()
        self._loops = {
            "settler": asyncio.create_task(self._repeat(self._settle, LogEvent.SETTLE_FAILED)),
            "outbox": asyncio.create_task(self._repeat(self._publish, LogEvent.OUTBOX_DELAYED)),
        }

    async def stop(self) -> None:
        """The settler finishes the study in hand, and the relay what it is publishing. What is left is data
        in the index: the next start goes on from there.
        """
        self._stopping.set()
        self._pause.end()
        self._due.set()
        try:
            await asyncio.gather(*self._loops.values(), return_exceptions=True)
            if self._loops:
                await self._relay.run_once()
                await self._settler.confirm()
        except IsocenterError as error:
            self._ports.telemetry.log.warning(LogEvent.OUTBOX_DELAYED, error=error)
        finally:
            await self._ports.bus.stop()
            if self._parsers is not None:
                await self._parsers.close()

    async def health(self) -> list[Health]:
        checks = await self._ports.bus.health()
        for name, loop in self._loops.items():
            checks.append(Health(name, not loop.done(), "restart the service" if loop.done() else ""))
        try:
            await self._index.check()
        except IsocenterError as error:
            checks.append(Health("index", ok=False, detail=error.message))
        else:
            checks.append(Health("index", ok=True))
        return checks

    def _then_look(self, handler: Callable[[CloudEvent], Awaitable[None]]) -> Handler:
        """An event that could not be handled may have changed something all the same."""

        async def handle(event: CloudEvent) -> None:
            try:
                await handler(event)
            finally:
                self._pause.shorten()

        return handle

    async def _settle(self) -> None:
        """Waits to be told that something is due, and looks now and then without being told."""
        self._due.clear()
        if await self._settler.run_once() < BATCH and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(LONGEST_SECONDS, self._settings.settle_poll_seconds)):
                    await self._due.wait()

    async def _publish(self) -> None:
        """One look at the index: publishes what waits, tells how much waits and wakes the settler."""
        self._pause.begin()
        if self._stopping.is_set():
            return
        backlog = await self._index.backlog()
        if backlog.outbox:
            await self._relay.run_once()
            backlog = await self._index.backlog()
            self._due.set()  # what is told can be confirmed
        self._tell(backlog)
        now = self._ports.clock.now()
        if backlog.settle_at is not None and backlog.settle_at <= now:
            self._due.set()
        await self._pause.rest(
            rest_seconds(
                backlog,
                now,
                soon=self._settings.settle_poll_seconds,
                retry=self._settings.outbox_poll_seconds,
            )
        )

    def _tell(self, backlog: Backlog) -> None:
        """Ages are 0 where nothing waits, so that a series never stops at its last high value."""
        metrics, now = self._ports.telemetry.metrics, self._ports.clock.now()
        latest, longest = backlog.latest_settle_at, self._settings.policy.max_wait
        metrics.set(Gauge.STUDIES_RECEIVING, backlog.receiving)
        metrics.set(Gauge.RECEIVING_AGE, _age(latest and latest - longest, now))
        metrics.set(Gauge.SETTLE_OVERDUE, _age(backlog.settle_at, now))
        metrics.set(Gauge.OUTBOX_PENDING, backlog.outbox)
        metrics.set(Gauge.OUTBOX_AGE, _age(backlog.outbox_since, now))

    async def _repeat(self, step: Callable[[], Awaitable[None]], failed: LogEvent) -> None:
        """A loop that ends only with the service: a defect in one step must not end settling for ever.

        `failed` says in the log that something the step depends on is down.
        """
        while not self._stopping.is_set():
            try:
                await step()
            except IsocenterError as error:
                self._ports.telemetry.log.warning(failed, error=error)
                await self._wait(_PAUSE_AFTER_ERROR)
            except Exception as error:  # noqa: BLE001 - told, and tried again
                log = self._ports.telemetry.log
                log.error(LogEvent.TASK_FAILED, error=error)  # noqa: TRY400 - not stdlib's
                await self._wait(_PAUSE_AFTER_ERROR)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def _age(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


def build(settings: IndexerSettings, ports: Ports) -> Indexer:
    """Raises Misconfigured without an index."""
    if ports.index is None:
        raise Misconfigured("the indexer needs an index")
    return Indexer(settings, ports, ports.index)
