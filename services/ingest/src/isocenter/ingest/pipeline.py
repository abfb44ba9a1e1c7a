"""What every instance goes through, whichever protocol brought it: read the header, hash, store, announce.

An acceptor sees this much of ingest and no more:

    async with intake.transfer(Protocol.DIMSE, sender) as transfer:
        async with transfer.instance(announced=announced) as receiver:
            await receiver.write(data)        # as often as needed
            outcome = await receiver.finish()

Success means that the object is durable, and either the event that announces it as well, or the store's
record that it is yet to be announced (`IntakeLimits.unannounced`). Nothing here reads or writes the index, so
the cost of an instance does not grow with the archive.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

from isocenter.common.events.models import CloudEvent, InstanceRejected, StoredInstance, TransferClosed
from isocenter.common.objects.vault import Vault
from isocenter.ingest.debts import Debts
from isocenter.ingest.publisher import SOURCE, Backlog, StoredPublisher
from isocenter.ingest.receiver import InstanceReceiver
from isocenter.ingest.signals import Signals
from isocenter.ingest.watermarks import Marks, Watermarks

if TYPE_CHECKING:
    from types import TracebackType

    from isocenter.common.errors import RejectReason
    from isocenter.common.events.models import Event, Protocol
    from isocenter.common.service import Ports
    from isocenter.ingest.commitment.desk import Desk
    from isocenter.ingest.domain import Announced

_MAX_REJECTIONS_IN_FLIGHT: Final = 64


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """Bounds of memory and of patience.

    Attributes:
        header_bytes: data set bytes (inflated) in which the four UIDs must come; held in memory until then.
        publish_seconds: after this an event that is not known to be durable counts as not durable.
        close_seconds: how long the end of a transfer may spend on `transfer.closed` and `instance.rejected`.
        unannounced: instances whose sender hears Success before their event is durable, at most at one time.
            The sender of a further one waits for the event. 0: every sender does.
        marks: free space that instances need to be taken.
    """

    header_bytes: int = 4 << 20
    publish_seconds: float = 20.0
    close_seconds: float = 5.0
    unannounced: int = 0
    marks: Marks = Marks(0, 0)  # noqa: RUF009 - frozen


class Intake:
    """The protocol-neutral entrance to the platform."""

    def __init__(self, ports: Ports, limits: IntakeLimits | None = None) -> None:
        self.ports = ports
        self.limits = limits or IntakeLimits()
        self.vault = Vault(ports.store, ports.sealing)
        self.signals = Signals(ports.telemetry)
        self.debts = Debts(ports, self.signals)
        self.backlog = Backlog()
        self.watermarks = Watermarks(
            ports,
            self.limits.marks,
            may_announce_later=lambda: self.may_announce_later,
            signals=self.signals,
        )
        self.commitments: Desk | None = None
        """Where requests for storage commitment go; None: they are not served."""

    @property
    def may_announce_later(self) -> bool:
        """Whether Success may come before the event of an instance that the store remembers as pending."""
        return self.backlog.count + self.debts.count < self.limits.unannounced

    def transfer(self, protocol: Protocol, sender: str) -> Transfer:
        """One association or one STOW-RS request."""
        return Transfer(self, protocol, sender)

    def wrap(self, event: Event, *, transfer_id: str) -> CloudEvent:
        return CloudEvent(
            id=self.ports.clock.new_id(),
            source=SOURCE,
            time=self.ports.clock.now(),
            data=event,
            correlation_id=transfer_id,
        )


class Transfer:
    """Instances that came together. Leaving the block tells each study that its transfer has ended.

    Set `aborted` before leaving, or leave with an exception, when the sender did not end it in order.
    """

    def __init__(self, intake: Intake, protocol: Protocol, sender: str) -> None:
        self.intake = intake
        self.protocol = protocol
        self.sender = sender
        self.id = intake.ports.clock.new_id()
        self.aborted = False
        self.begun = 0
        """Instances that were begun, whatever became of them."""
        self.refused = 0
        self._stored: dict[str, int] = {}
        self._background: set[asyncio.Task[None]] = set()
        # An association brings few studies and series, each many times.
        self.study_key = lru_cache(64)(intake.ports.keys.study_key)
        self.series_key = lru_cache(64)(intake.ports.keys.series_key)
        self._publisher = StoredPublisher(
            bus=intake.ports.bus,
            protocol=protocol,
            sender=sender,
            transfer_id=self.id,
            wrap=self.wrap,
            announced=intake.debts.paid,
            failed=self._not_published,
            timeout=intake.limits.publish_seconds,
            backlog=intake.backlog,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        aborted = self.aborted or error is not None
        try:
            async with asyncio.timeout(self.intake.limits.close_seconds):
                await self._publisher.drain()
                closed = [self._close(study, count, aborted=aborted) for study, count in self._stored.items()]
                await asyncio.gather(*closed, *self._background)
        except TimeoutError:
            # Evidence only: a study that misses it settles by its quiet timer.
            self.intake.signals.not_announced(self, TransferClosed.event_type, "timeout")
        finally:
            for task in self._background:
                task.cancel()

    @property
    def stored(self) -> int:
        return sum(self._stored.values())

    def instance(
        self, *, announced: Announced | None = None, expected_study: str | None = None
    ) -> InstanceReceiver:
        """Begins an instance.

        Args:
            announced: given, the bytes that follow are a bare data set; else they are a whole Part 10 file.
            expected_study: Study Instance UID that the instance must have.
        """
        return InstanceReceiver(self, announced, expected_study)

    def reject(self, reason: RejectReason, status: int, *, study_instance_uid: str = "") -> None:
        """Counts a refusal and publishes `instance.rejected` beside the transfer, if the bus can take it."""
        self.refused += 1
        self.intake.signals.refused(self, reason, status)
        if self.refused > 1 and self.intake.watermarks.refusal is not None:
            return  # a sender that goes on must not fill the bus with what it was told already
        if len(self._background) >= _MAX_REJECTIONS_IN_FLIGHT:
            # The sender hears every refusal; the event of one in a flood of them may go missing.
            self.intake.signals.not_announced(self, InstanceRejected.event_type, "too many at once")
            return
        known = self.study_key(study_instance_uid) if study_instance_uid else None
        event = InstanceRejected(
            study_key=known or self.intake.ports.keys.transfer_key(self.id),
            transfer_id=self.id,
            protocol=self.protocol,
            sender=self.sender,
            reason=reason,
            status=status,
            rejected_at=self.intake.ports.clock.now(),
        )
        task = asyncio.get_running_loop().create_task(self._publish(event))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def announce(self, study_key: str, instance: StoredInstance, *, pending: bool) -> None:
        """Returns when the fact is durable. Raises BusUnavailable.

        Args:
            study_key: of the instance's study.
            instance: the fact.
            pending: this process has stored it, and the store remembers durably that it is to be announced;
                not so of an instance that was there already, whatever became of its first event.
        """
        if pending and self.intake.may_announce_later:
            self._publisher.accept(study_key, instance)
        else:
            await self._publisher.announce(study_key, instance)
        self._stored[study_key] = self._stored.get(study_key, 0) + 1

    def wrap(self, event: Event) -> CloudEvent:
        return self.intake.wrap(event, transfer_id=self.id)

    def _not_published(self, study_key: str, instances: list[StoredInstance], error: BaseException) -> None:
        """Their senders heard Success. They are owed, and the store remembers them beyond this process."""
        for instance in instances:
            self.intake.debts.owe(study_key, self, instance)
        self.intake.signals.debts_open(error)

    async def _close(self, study_key: str, instances: int, *, aborted: bool) -> None:
        await self._publish(
            TransferClosed(
                study_key=study_key,
                transfer_id=self.id,
                protocol=self.protocol,
                sender=self.sender,
                instances=instances,
                aborted=aborted,
                closed_at=self.intake.ports.clock.now(),
            )
        )

    async def _publish(self, event: Event) -> None:
        """Best effort: the sender's answer does not hang on these events."""
        try:
            await self.intake.ports.bus.publish(self.wrap(event))
        except Exception as error:  # noqa: BLE001 - whatever the bus fails with, the transfer ends in order
            self.intake.signals.not_announced(self, event.event_type, error)
