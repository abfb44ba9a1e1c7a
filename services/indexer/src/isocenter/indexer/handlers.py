"""What the indexer does with events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace

from isocenter.common.clock import Clock
from isocenter.common.errors import Misconfigured, NotFound, Permanent, Transient
from isocenter.common.events.models import CloudEvent, InstancesStored, TransferClosed
from isocenter.common.index.ports import Applied, IndexWriter
from isocenter.common.telemetry import STUDY_KEY, Counter, LogEvent, Telemetry, current_traceparent
from isocenter.indexer.domain import SettlingPolicy
from isocenter.indexer.reading import RecordReader, Unreadable
from isocenter.indexer.reports import ArrivalReports


@dataclass(frozen=True, slots=True)
class Handlers:
    """Idempotent: any event may come twice, late, or after an index rebuild."""

    index: IndexWriter
    records: RecordReader
    policy: SettlingPolicy
    clock: Clock
    telemetry: Telemetry
    outbox_changed: Callable[[], None]

    async def instances_stored(self, event: CloudEvent) -> None:
        """Indexes the instances that can be read, then raises for those that cannot, if there are any.

        Raises:
            Transient: the store or the index is down, or an object does not show yet.
            Misconfigured: the store or the index refuses us.
            Permanent: an object can never be indexed as it is.
        """
        if not isinstance(event.data, InstancesStored):
            raise TypeError(f"not an instances.stored event: {event.type}")
        stored = event.data
        trace.get_current_span().set_attribute(STUDY_KEY, stored.study_key)
        records, unreadable = await self.records.read_all(
            stored.study_key, [instance.object_key for instance in stored.instances]
        )
        if records:
            traceparent = current_traceparent()
            applied = await self.index.apply(
                records,
                self.policy.arrival(self.clock.now(), stored.transfer_id, traceparent),
                ArrivalReports(self.clock, event, traceparent),
            )
            self._tell(stored.study_key, applied)
        self._raise_for(unreadable)

    async def transfer_closed(self, event: CloudEvent) -> None:
        """Raises Transient if the index is down."""
        if not isinstance(event.data, TransferClosed):
            raise TypeError(f"not a transfer.closed event: {event.type}")
        closed = event.data
        trace.get_current_span().set_attribute(STUDY_KEY, closed.study_key)
        settle_at = self.policy.settle_at_after_close(self.clock.now())
        await self.index.close_transfer(closed.study_key, settle_at, closed.transfer_id)

    def _tell(self, study_key: str, applied: Applied) -> None:
        metrics, log = self.telemetry.metrics, self.telemetry.log
        outcomes = {"new": len(applied.new), "known": applied.duplicates, "conflict": len(applied.conflicts)}
        for outcome, count in outcomes.items():
            # Zeros, too: what is watched for an increase must be there before its first one.
            metrics.add(Counter.INDEX_INSTANCES, count, outcome=outcome)
        log.debug(
            LogEvent.INSTANCES_INDEXED,
            study_key=study_key,
            instances=len(applied.new),
            duplicates=applied.duplicates,
            conflicts=len(applied.conflicts),
        )
        for conflict in applied.conflicts:
            log.warning(
                LogEvent.INSTANCE_CONFLICTED,
                study_key=study_key,
                instance_key=conflict.instance_key,
                object_key=conflict.conflicting_object_key,
            )
        if applied.reopened_version is not None:
            log.info(LogEvent.STUDY_REOPENED, study_key=study_key, version=applied.reopened_version)
        if applied.conflicts or applied.reopened_version is not None:
            self.outbox_changed()

    def _raise_for(self, unreadable: list[Unreadable]) -> None:
        """Transient first: a retry may mend some, and finds the rest again."""
        for fault in unreadable:
            self.telemetry.log.warning(
                LogEvent.INSTANCE_UNREADABLE, object_key=fault.object_key, error=fault.error
            )
        errors = [
            # Announced objects are durable: a store that does not show one yet is behind.
            Transient("object is not there yet", object_key=fault.object_key)
            if isinstance(fault.error, NotFound)
            else fault.error
            for fault in unreadable
        ]
        for error in sorted(errors, key=lambda error: not isinstance(error, Transient | Misconfigured)):
            if isinstance(error, Transient | Misconfigured):
                raise error
            raise Permanent("objects cannot be indexed", count=len(errors)) from error
