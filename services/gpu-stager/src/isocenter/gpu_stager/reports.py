"""The events of the stager: facts about one node's cache. Nobody who wants a volume waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from isocenter.common.clock import Clock
from isocenter.common.errors import IsocenterError
from isocenter.common.events.codec import source_of
from isocenter.common.events.models import (
    CloudEvent,
    Event,
    EvictionReason,
    StagingMode,
    StudyEvicted,
    StudyStaged,
)
from isocenter.common.telemetry import LogEvent, Telemetry
from isocenter.gpu_stager.cache.ledger import Pin, Row
from isocenter.gpu_stager.modes.verdict import Mode

SOURCE = source_of("gpu-stager")
Publish = Callable[[CloudEvent], Awaitable[None]]


@dataclass
class Reports:
    """Publishes in the background, in order: nobody waits for an event to use a volume."""

    publish: Publish
    clock: Clock
    telemetry: Telemetry
    node: str
    _waiting: asyncio.Queue[CloudEvent] = field(default_factory=lambda: asyncio.Queue(10_000))

    def staged(
        self,
        row: Row,
        *,
        mode: Mode,
        stacks: int,
        version: int | None,
        received_at: datetime | None,
        cause: CloudEvent | None,
    ) -> None:
        now = self.clock.now()
        self._tell(
            StudyStaged(
                study_key=row.study_key,
                series_key=row.series_key,
                version=version,
                entry=row.name,
                node=self.node,
                mode=StagingMode(mode.value),
                size_bytes=row.bytes,
                stacks=stacks,
                modality=row.modality,
                pinned=row.pin is not Pin.NONE,
                received_at=received_at,
                staged_at=now,
            ),
            cause,
        )

    def evicted(self, row: Row, reason: str) -> None:
        self._tell(
            StudyEvicted(
                study_key=row.study_key,
                series_key=row.series_key,
                entry=row.name,
                node=self.node,
                reason=EvictionReason(reason),
                evicted_at=self.clock.now(),
            ),
            None,
        )

    def _tell(self, data: Event, cause: CloudEvent | None) -> None:
        event = CloudEvent(
            id=self.clock.new_id(),
            source=SOURCE,
            time=self.clock.now(),
            data=data,
            correlation_id=cause.correlation_id if cause is not None else None,
            causation_id=cause.id if cause is not None else None,
        )
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self.telemetry.log.warning(LogEvent.BUS_UNAVAILABLE, event_type=data.event_type)

    async def run(self) -> None:
        """Publishes until it is cancelled; what the bus refuses is tried again, in order."""
        while True:
            event = await self._waiting.get()
            while True:
                try:
                    await self.publish(event)
                    break
                except IsocenterError as error:
                    self.telemetry.log.warning(LogEvent.BUS_UNAVAILABLE, event_type=event.type, error=error)
                    await asyncio.sleep(1.0)
            self._waiting.task_done()

    async def drain(self, seconds: float) -> None:
        """Waits until everything is told, but not for ever."""
        try:
            async with asyncio.timeout(seconds):
                await self._waiting.join()
        except TimeoutError:
            return
