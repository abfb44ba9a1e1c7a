"""Objects whose event is not known to be durable: announced later, so that index and objects stay equal.

An object becomes durable before its event. If the process dies in between, or the bus refuses, the sender
heard Success where senders do not wait for the event; and where they do, an object that nobody knows of must
not be left behind either. The store remembers each pending commit (`ObjectStore.pending`); what this process
owes is remembered here. Announcing twice is harmless: consumers are idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from isocenter.common.errors import IntegrityError, IsocenterError, Permanent
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol, StoredInstance
from isocenter.ingest.domain import stored_instance
from isocenter.ingest.publisher import MAX_INSTANCES, SOURCE

if TYPE_CHECKING:
    from isocenter.common.service import Ports
    from isocenter.ingest.pipeline import Transfer
    from isocenter.ingest.signals import Signals

FIRST_RETRY_SECONDS: Final = 1.0
PERIOD_SECONDS: Final = 15.0
"""How often what is owed is tried again."""
MAX_OWED: Final = 20_000
"""Bounds memory while the bus is down and senders keep trying."""


class Debt(NamedTuple):
    """One instance to announce, with the transfer that brought it."""

    study_key: str
    transfer_id: str
    protocol: Protocol
    sender: str
    instance: StoredInstance


class Debts:
    """What is owed to the bus, and the task that pays it."""

    def __init__(self, ports: Ports, signals: Signals) -> None:
        self._ports = ports
        self._signals = signals
        self._owed: dict[str, Debt] = {}
        self._task: asyncio.Task[None] | None = None
        self._confirming: set[asyncio.Task[None]] = set()
        signals.observe_debts(lambda: self.count)

    @property
    def count(self) -> int:
        """Instances owed by this process."""
        return len(self._owed)

    def owe(self, study_key: str, transfer: Transfer, instance: StoredInstance) -> None:
        if len(self._owed) >= MAX_OWED:
            return  # the store remembers it too: it is announced after the next start
        self._owed[instance.object_key] = Debt(
            study_key, transfer.id, transfer.protocol, transfer.sender, instance
        )

    def paid(self, instances: Iterable[StoredInstance]) -> None:
        """The event that carries these is durable. Returns at once: the store forgets them a little later."""
        keys = [instance.object_key for instance in instances]
        for key in keys:
            self._owed.pop(key, None)
        task = asyncio.get_running_loop().create_task(self._confirm(keys))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    def start(self) -> None:
        """Announces what an earlier process left, and from then on what this one owes."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._confirming:
            await asyncio.wait(self._confirming)

    async def settle(self) -> int:
        """Announces everything owed now. Returns how many instances.

        Raises:
            BusUnavailable, StoreUnavailable: the rest stays owed.
        """
        debts = sorted([*self._owed.values(), *[debt async for debt in self._inherited()]], key=_transfer_of)
        paid = 0
        for _, group in groupby(debts, key=_transfer_of):
            same = list(group)
            for first in range(0, len(same), MAX_INSTANCES):
                batch = [debt.instance for debt in same[first : first + MAX_INSTANCES]]
                try:
                    await self._ports.bus.publish(self._event(same[0], batch))
                except (Permanent, ValueError) as error:
                    # No event can be made of these, now or later: nobody else's may wait for that.
                    self._signals.debts_open(error)
                    continue
                self.paid(batch)
                paid += len(batch)
        return paid

    async def _inherited(self) -> AsyncIterator[Debt]:
        """What processes that are gone left behind."""
        try:
            async for info in self._ports.store.pending():
                facts = info.metadata
                try:
                    debt = Debt(
                        facts["study_key"],
                        facts["transfer_id"],
                        Protocol(facts["protocol"]),
                        facts["sender"],
                        stored_instance(info, self._ports.sealing),
                    )
                except (KeyError, ValueError):
                    # Not an instance that ingest stored: it is listed by a rebuild, and holds nobody up here.
                    error = IntegrityError("a pending object does not say what it is", object_key=info.key)
                    self._signals.debts_open(error)
                else:
                    yield debt
        except IntegrityError as error:
            # Raised after the sound ones: the damaged object is for an operator, the others go on.
            self._signals.debts_open(error)

    def _event(self, debt: Debt, batch: list[StoredInstance]) -> CloudEvent:
        data = InstancesStored(
            study_key=debt.study_key,
            transfer_id=debt.transfer_id,
            protocol=debt.protocol,
            sender=debt.sender,
            instances=batch,
        )
        clock = self._ports.clock
        return CloudEvent(
            id=clock.new_id(), source=SOURCE, time=clock.now(), data=data, correlation_id=debt.transfer_id
        )

    async def _run(self) -> None:
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                paid = await self.settle()
            except IsocenterError as error:
                self._signals.debts_open(error)
            except Exception as error:  # noqa: BLE001 - one odd object must not end the task that mends
                self._signals.task_failed(error)
            else:
                if paid:
                    self._signals.debts_paid(paid)
                wait = PERIOD_SECONDS
            await asyncio.sleep(wait)
            wait = min(2 * wait, PERIOD_SECONDS)

    async def _confirm(self, keys: list[str]) -> None:
        try:
            await self._ports.store.confirm(keys)
        except IsocenterError as error:
            # Announced once more after the next start: harmless.
            self._signals.debts_open(error)


def _transfer_of(debt: Debt) -> tuple[str, str, Protocol, str]:
    return debt[:4]
