"""Announces stored instances: what arrived for a study while an event was in flight goes into the next."""

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


@dataclass(slots=True)
class _Waiter:
    instance: StoredInstance
    durable: asyncio.Future[None]
    context: contextvars.Context


@dataclass(slots=True)
class _Lane:
    """One study of one transfer: at most one event in flight, the rest waits for the next."""

    pending: deque[_Waiter] = field(default_factory=deque)
    in_flight: bool = False


class StoredPublisher:
    """Coalesces the stored instances of one transfer into `instances.stored` events, without waiting.

    `announce` returns when the event that carries the instance is durable. A failed publish fails exactly
    the instances it carried; the next batch tries anew. A waiter that is cancelled leaves its event alone.
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
        timeout: float,
    ) -> None:
        self._bus = bus
        self._protocol = protocol
        self._sender = sender
        self._transfer_id = transfer_id
        self._wrap = wrap
        self._announced = announced
        self._timeout = timeout
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def announce(self, study_key: str, instance: StoredInstance) -> None:
        """Returns when the fact is durable.

        Raises:
            BusUnavailable: it is not known to be durable.
        """
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane = self._lanes.setdefault(study_key, _Lane())
        lane.pending.append(_Waiter(instance, durable, contextvars.copy_context()))
        if not lane.in_flight:
            self._send(study_key, lane)
        await durable

    async def drain(self) -> None:
        """Waits for events in flight, whatever becomes of them."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _send(self, study_key: str, lane: _Lane) -> None:
        batch = [lane.pending.popleft() for _ in range(min(MAX_INSTANCES, len(lane.pending)))]
        lane.in_flight = True
        # The trace of the first instance in the event is the one that the event continues.
        task = asyncio.get_running_loop().create_task(
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
        for waiter in batch:
            if waiter.durable.done():
                continue
            if error is None:
                waiter.durable.set_result(None)
            else:
                waiter.durable.set_exception(error)
        lane.in_flight = False
        if lane.pending:
            self._send(study_key, lane)
        else:
            self._lanes.pop(study_key, None)
