"""Announces stored instances: what arrived for a study meanwhile goes into one event."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import CloudEvent, InstancesStored, StoredInstance

if TYPE_CHECKING:
    from collections.abc import Callable

    from isocenter.common.bus.factory import Bus
    from isocenter.common.events.models import Event, Protocol

SOURCE: Final = "/isocenter/ingest"
MAX_INSTANCES: Final = 200
"""Upper bound of `instances.stored` (see the event's model)."""
LINGER_SECONDS: Final = 0.1
"""An instance for which nobody waits is announced after so long at the latest, alone or with others."""


@dataclass(slots=True)
class Backlog:
    """How many instances are accepted and not announced, over all transfers."""

    count: int = 0


@dataclass(slots=True)
class _Waiter:
    instance: StoredInstance
    durable: asyncio.Future[None] | None
    """None: nobody waits, the store remembers the instance."""
    context: contextvars.Context


@dataclass(slots=True)
class _Lane:
    """One study of one transfer: at most one event in flight, the rest waits for the next."""

    pending: deque[_Waiter] = field(default_factory=deque)
    in_flight: bool = False
    urgent: bool = False
    """Somebody waits for one of those that are pending."""
    timer: asyncio.TimerHandle | None = None


class StoredPublisher:
    """Coalesces the stored instances of one transfer into `instances.stored` events.

    `announce` sends without delay and returns when the event that carries the instance is durable. `accept`
    returns at once, and its instances linger a moment for others. A failed publish fails exactly the
    instances it carried; the next batch tries anew. A waiter that is cancelled leaves its event alone.

    Args:
        announced: told of instances whose event is durable.
        failed: told of the accepted ones of an event that failed, with its error.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        protocol: Protocol,
        sender: str,
        transfer_id: str,
        wrap: Callable[[Event], CloudEvent],
        announced: Callable[[list[StoredInstance]], None],
        failed: Callable[[str, list[StoredInstance], BaseException], None],
        timeout: float,
        backlog: Backlog | None = None,
    ) -> None:
        self._bus = bus
        self._protocol = protocol
        self._sender = sender
        self._transfer_id = transfer_id
        self._wrap = wrap
        self._announced = announced
        self._failed = failed
        self._timeout = timeout
        self._backlog = backlog or Backlog()
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def announce(self, study_key: str, instance: StoredInstance) -> None:
        """Returns when the fact is durable.

        Raises:
            BusUnavailable: it is not known to be durable.
        """
        durable: asyncio.Future[None] = self._loop.create_future()
        lane = self._put(study_key, instance, durable)
        lane.urgent = True
        if not lane.in_flight:
            self._send(study_key, lane)
        await durable

    def accept(self, study_key: str, instance: StoredInstance) -> None:
        """Announces it soon. For an instance that the store remembers until it is announced."""
        self._backlog.count += 1
        lane = self._put(study_key, instance, None)
        if not lane.in_flight:
            self._next(study_key, lane)

    async def drain(self) -> None:
        """Waits for events in flight, whatever becomes of them; nothing lingers."""
        for study_key, lane in list(self._lanes.items()):
            lane.urgent = True
            if not lane.in_flight:
                self._send(study_key, lane)
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _put(self, study_key: str, instance: StoredInstance, durable: asyncio.Future[None] | None) -> _Lane:
        lane = self._lanes.get(study_key)
        if lane is None:
            lane = self._lanes[study_key] = _Lane()
        lane.pending.append(_Waiter(instance, durable, contextvars.copy_context()))
        return lane

    def _next(self, study_key: str, lane: _Lane) -> None:
        """What follows when instances are pending and none are in flight."""
        if lane.urgent or len(lane.pending) >= MAX_INSTANCES:
            self._send(study_key, lane)
        elif lane.timer is None:
            lane.timer = self._loop.call_later(LINGER_SECONDS, self._send, study_key, lane)

    def _send(self, study_key: str, lane: _Lane) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        batch = [lane.pending.popleft() for _ in range(min(MAX_INSTANCES, len(lane.pending)))]
        lane.in_flight = True
        lane.urgent = lane.urgent and bool(lane.pending)
        # The trace of the first instance in the event is the one that the event continues.
        task = self._loop.create_task(
            self._publish(study_key, [waiter.instance for waiter in batch]), context=batch[0].context
        )
        self._tasks.add(task)
        task.add_done_callback(partial(self._sent, study_key, lane, batch))

    async def _publish(self, study_key: str, instances: list[StoredInstance]) -> None:
        event = InstancesStored(
            study_key=study_key,
            transfer_id=self._transfer_id,
            protocol=self._protocol,
            sender=self._sender,
            instances=instances,
        )
        try:
            async with asyncio.timeout(self._timeout):
                await self._bus.publish(self._wrap(event))
        except TimeoutError:
            raise BusUnavailable("publish did not finish in time", study_key=study_key) from None
        self._announced(instances)

    def _sent(self, study_key: str, lane: _Lane, batch: list[_Waiter], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            error: BaseException | None = BusUnavailable("publish was cancelled", study_key=study_key)
        else:
            error = task.exception()
        accepted = []
        for waiter in batch:
            if waiter.durable is None:
                accepted.append(waiter.instance)
            elif waiter.durable.done():
                continue
            elif error is None:
                waiter.durable.set_result(None)
            else:
                waiter.durable.set_exception(error)
        self._backlog.count -= len(accepted)
        if accepted and error is not None:
            self._failed(study_key, accepted, error)
        lane.in_flight = False
        if lane.pending:
            self._next(study_key, lane)
        else:
            self._lanes.pop(study_key, None)
