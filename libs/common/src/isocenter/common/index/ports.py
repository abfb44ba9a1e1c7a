"""The index as its users see it. One conformance suite runs over every implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from isocenter.common.events.models import CloudEvent, SettleReason
from isocenter.common.index.commitments import Commitments
from isocenter.common.index.query import Page, Query
from isocenter.common.index.records import (
    ConflictRecord,
    InstanceRecord,
    OutboxEntry,
    SeriesRecord,
    StudyRecord,
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What goes with a batch of instances of one study.

    Attributes:
        settle_at: when the study may settle if nothing more arrives.
        latest_settle_at: the maximum wait, counted from the first unsettled arrival; only the first one
            counts.
        transfer_id: the transfer that brought them: open, as far as the study knows, until `close_transfer`.
    """

    now: datetime
    settle_at: datetime
    latest_settle_at: datetime
    traceparent: str | None
    transfer_id: str | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch changed. `new` empty and `conflicts` empty: the batch was a replay, nothing changed."""

    new: tuple[str, ...]
    """SOP Instance UIDs that were not known."""
    duplicates: int
    conflicts: tuple[ConflictRecord, ...]
    """Conflicts that were not known."""
    reopened_version: int | None
    """The settled version that this arrival made out of date, if it did."""


@dataclass(frozen=True, slots=True)
class DueStudy:
    """A study whose quiet period is over, leased to one settler. `revision` fences: it moves with every
    arrival.

    Attributes:
        version: the last settled version, 0 before the first; settling writes version + 1.
        due_at: when its quiet period ended.
    """

    study_instance_uid: str
    study_key: str
    version: int
    revision: int
    reason: SettleReason
    traceparent: str | None
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Settlement:
    """The outcome of settling: written in one transaction with the event that reports it.

    Attributes:
        confirmation: key of an empty object that must exist once this is written and told: it is in
            `pending_confirmations` from the moment its event has left the outbox.
    """

    version: int
    reason: SettleReason
    settled_at: datetime
    manifests: dict[str, str]
    event: CloudEvent
    entry: OutboxEntry
    confirmation: str | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the index still has to do, and since when."""

    receiving: int
    """Studies that have not settled."""
    outbox: int
    """Events that are not published."""
    settle_at: datetime | None = None
    """The earliest `settle_at` among the receiving studies; None without one. In the past: it is due."""
    latest_settle_at: datetime | None = None
    """The earliest `latest_settle_at` among them: the maximum wait before it, the first unsettled instance of
    the study that is unsettled for longest arrived.
    """
    outbox_since: datetime | None = None
    """When the event that is first in the outbox was decided (its `ce_time`); None without one."""


@dataclass(frozen=True, slots=True)
class RestoredRevision:
    """What a revision object says of the last settled version."""

    version: int
    reason: SettleReason
    settled_at: datetime
    manifests: dict[str, str]


class IndexReader(Protocol):
    """What the gateway needs. Raises IndexUnavailable when the database cannot be reached."""

    async def search(self, query: Query) -> Page: ...

    async def get_study(self, study_instance_uid: str) -> StudyRecord | None: ...

    async def find_study(self, study: str) -> StudyRecord | None:
        """By Study Instance UID or by study key."""
        ...

    async def list_series(self, study_instance_uid: str) -> list[SeriesRecord]: ...

    def instances(
        self,
        study_instance_uid: str,
        series_instance_uid: str | None = None,
        sop_instance_uid: str | None = None,
    ) -> AsyncIterator[InstanceRecord]:
        """Current instances, ordered by series, instance number and SOP Instance UID; conflicting objects
        left out.
        """
        ...

    async def conflicts(self, study_instance_uid: str) -> list[ConflictRecord]: ...

    def studies(self) -> AsyncIterator[StudyRecord]:
        """Every study, newest arrival first."""
        ...

    def dump(self) -> AsyncIterator[str]:
        """Everything that a rebuild from objects must restore, as canonical JSON lines in a fixed order.

        Two indexes are equal when their dumps are. Not in it, because objects do not say it: timers and
        leases (settle_at, the revision counter, open transfers), the trace context of the last arrival, when
        a conflict was detected, and the outbox.
        """
        ...


class IndexWriter(Protocol):
    """What the indexer needs. Every write is idempotent by natural key or fenced by `revision`."""

    async def apply(
        self, instances: Sequence[InstanceRecord], arrival: Arrival, outbox: OutboxBuilder
    ) -> Applied:
        """Upserts 1..200 instances of one study in one transaction. Known instances change nothing.

        The same SOP Instance UID with another object is a conflict, once per object. The object that was
        received first is current, by (received_at, object key): if the known one was received later it gives
        way, so the outcome does not depend on the order of processing. SOP Instance UIDs are unique inside a
        study; the same UID in two studies is two instances.
        """
        ...

    async def close_transfer(
        self, study_key: str, settle_at: datetime, transfer_id: str | None = None
    ) -> bool:
        """A transfer ended: brings `settle_at` forward if the study is receiving and no other transfer of it
        is known to be open. Never moves it back. True if it moved.
        """
        ...

    async def settle_now(self, study_key: str, now: datetime) -> bool:
        """Makes a receiving study due (reason `manual`). False if it is unknown or settled."""
        ...

    async def claim_due(self, now: datetime, lease_seconds: float, limit: int) -> list[DueStudy]:
        """Leases studies with `settle_at <= now`. A lease that is not used runs out and the study is due
        again.
        """
        ...

    async def settle(self, due: DueStudy, settlement: Settlement) -> bool:
        """False, and nothing written, if instances arrived since `due` was claimed."""
        ...

    async def pending_outbox(self, limit: int) -> list[OutboxEntry]:
        """Oldest first, in the order in which they were decided."""
        ...

    async def outbox_published(self, event_ids: Sequence[str]) -> None: ...

    async def pending_confirmations(self, limit: int) -> list[str]: ...

    async def confirmations_written(self, object_keys: Sequence[str]) -> None: ...

    async def restore_revision(
        self, study_instance_uid: str, restored: RestoredRevision, *, settled: bool
    ) -> None:
        """Rebuild only: sets version, reason and manifests as a revision object recorded them; no event.

        `settled=False`: instances arrived after that version, the study stays receiving.
        """
        ...

    async def backlog(self) -> Backlog: ...

    async def clear(self) -> None:
        """Rebuild only: removes every record; what waits in the outbox stays. Until `rebuilt`, only this
        object may write; every other writer, also one that starts later, gets IndexUnavailable: half an
        index would give a study's next revision a version that is taken.
        """
        ...

    async def rebuilt(self) -> None:
        """Rebuild only: the records are whole again."""
        ...


class OutboxBuilder(Protocol):
    """Turns what `apply` found into events, inside its transaction (so that fact and event are one)."""

    def __call__(self, study_key: str, applied: Applied) -> Sequence[OutboxEntry]: ...


class Index(IndexReader, IndexWriter, Commitments, Protocol):
    async def check(self) -> None:
        """Raises IndexUnavailable."""
        ...

    async def close(self) -> None: ...
