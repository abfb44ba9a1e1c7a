"""`SqliteIndex`: the `Index` port over one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from isocenter.common.errors import IndexUnavailable
from isocenter.common.index.commitments import Commitment, Located, Step
from isocenter.common.index.ports import (
    Applied,
    Arrival,
    Backlog,
    DueStudy,
    OutboxBuilder,
    RestoredRevision,
    Settlement,
)
from isocenter.common.index.query import Page, Query
from isocenter.common.index.records import (
    ConflictRecord,
    InstanceRecord,
    OutboxEntry,
    SeriesRecord,
    StudyRecord,
)
from isocenter.common.index.sqlite import arrivals, commitments, outbox, reading, schema, settling
from isocenter.common.index.sqlite.database import Database

T = TypeVar("T")


class SqliteIndex:
    """See `isocenter.common.index.ports.Index`. One process writes; others may read, or wait their turn.

    Durable: a write that returned survives power loss. Every method raises IndexUnavailable when the file
    cannot be used (disk full, I/O error, held by another process).
    """

    def __init__(self, database: Database, default_issuer: str) -> None:
        self._database = database
        self._default_issuer = default_issuer
        self._rebuilding = False

    @classmethod
    async def open(cls, path: Path, *, default_issuer: str = "") -> SqliteIndex:
        """Opens or creates the file (mode 0600).

        Args:
            path: the database; `-wal` and `-shm` stand beside it.
            default_issuer: who assigned identifiers whose data set names nobody. Applied when records are
                read, so it can be changed without a rebuild.

        Raises:
            Misconfigured: the file is not ours, or of another schema version.
            IndexUnavailable
        """
        return cls(await Database.open(path), default_issuer)

    async def search(self, query: Query) -> Page:
        return await self._database.read(lambda c: reading.search(c, query, self._default_issuer))

    async def get_study(self, study_instance_uid: str) -> StudyRecord | None:
        return await self._study(study_instance_uid, by_key=False)

    async def find_study(self, study: str) -> StudyRecord | None:
        return await self._study(study, by_key=True)

    async def _study(self, name: str, *, by_key: bool) -> StudyRecord | None:
        return await self._database.read(
            lambda c: reading.study(c, name, self._default_issuer, by_key=by_key)
        )

    async def list_series(self, study_instance_uid: str) -> list[SeriesRecord]:
        return await self._database.read(lambda c: reading.series_of(c, study_instance_uid))

    async def instances(
        self,
        study_instance_uid: str,
        series_instance_uid: str | None = None,
        sop_instance_uid: str | None = None,
    ) -> AsyncIterator[InstanceRecord]:
        after: reading.InstanceKey | None = None
        while True:
            page, after = await self._database.read(
                partial(
                    reading.instances_after,
                    study_uid=study_instance_uid,
                    series_uid=series_instance_uid,
                    sop_uid=sop_instance_uid,
                    after=after,
                )
            )
            for record in page:
                yield record
            if after is None:
                return

    async def conflicts(self, study_instance_uid: str) -> list[ConflictRecord]:
        return await self._database.read(lambda c: reading.conflicts_of(c, study_instance_uid))

    async def studies(self) -> AsyncIterator[StudyRecord]:
        after: reading.StudyKey | None = None
        while True:
            page, after = await self._database.read(
                partial(reading.studies_after, default_issuer=self._default_issuer, after=after)
            )
            for record in page:
                yield record
            if after is None:
                return

    async def dump(self) -> AsyncIterator[str]:
        for uid in await self._database.read(reading.study_uids):
            for line in await self._database.read(partial(reading.dump_study, study_uid=uid)):
                yield line

    async def apply(
        self, instances: Sequence[InstanceRecord], arrival: Arrival, outbox: OutboxBuilder
    ) -> Applied:
        return await self._write(lambda c: arrivals.apply(c, instances, arrival, outbox))

    async def close_transfer(
        self, study_key: str, settle_at: datetime, transfer_id: str | None = None
    ) -> bool:
        return await self._write(lambda c: settling.close_transfer(c, study_key, settle_at, transfer_id))

    async def settle_now(self, study_key: str, now: datetime) -> bool:
        return await self._write(lambda c: settling.settle_now(c, study_key, now))

    async def claim_due(self, now: datetime, lease_seconds: float, limit: int) -> list[DueStudy]:
        return await self._write(lambda c: settling.claim_due(c, now, lease_seconds, limit))

    async def settle(self, due: DueStudy, settlement: Settlement) -> bool:
        return await self._write(lambda c: settling.settle(c, due, settlement))

    async def pending_outbox(self, limit: int) -> list[OutboxEntry]:
        return await self._database.read(lambda c: outbox.pending(c, limit))

    async def outbox_published(self, event_ids: Sequence[str]) -> None:
        await self._write(lambda c: outbox.published(c, event_ids))

    async def pending_confirmations(self, limit: int) -> list[str]:
        return await self._database.read(lambda c: settling.pending_confirmations(c, limit))

    async def confirmations_written(self, object_keys: Sequence[str]) -> None:
        await self._write(lambda c: settling.confirmations_written(c, object_keys))

    async def restore_revision(
        self, study_instance_uid: str, restored: RestoredRevision, *, settled: bool
    ) -> None:
        await self._write(lambda c: settling.restore(c, study_instance_uid, restored, settled=settled))

    async def backlog(self) -> Backlog:
        return await self._database.read(settling.backlog)

    async def create_commitment(self, commitment: Commitment) -> Commitment:
        return await self._write(lambda c: commitments.create(c, commitment))

    async def get_commitment(self, requester: str, transaction_uid: str) -> Commitment | None:
        return await self._database.read(lambda c: commitments.get(c, requester, transaction_uid))

    async def claim_commitments(self, now: datetime, lease_seconds: float, limit: int) -> list[Commitment]:
        if not await self._database.read(lambda c: commitments.any_due(c, now)):
            return []  # looked at often, due rarely: a write would wait its turn each time
        return await self._write(lambda c: commitments.claim(c, now, lease_seconds, limit))

    async def renew_commitment(self, commitment: Commitment, until: datetime) -> bool:
        return await self._write(lambda c: commitments.renew(c, commitment, until))

    async def advance_commitment(self, commitment: Commitment, step: Step) -> bool:
        return await self._write(lambda c: commitments.advance(c, commitment, step))

    async def repeat_commitment(self, commitment: Commitment, now: datetime) -> bool:
        return await self._write(lambda c: commitments.repeat(c, commitment, now))

    async def purge_commitments(self, before: datetime) -> int:
        return await self._write(lambda c: commitments.purge(c, before))

    async def commitments(self, limit: int) -> list[Commitment]:
        return await self._database.read(lambda c: commitments.newest(c, limit))

    async def locate(self, sop_instance_uids: Sequence[str]) -> list[Located]:
        return await self._database.read(
            partial(_guarded, lambda c: commitments.locate(c, sop_instance_uids))
        )

    async def clear(self) -> None:
        self._rebuilding = True
        await self._write(schema.begin_rebuild)

    async def rebuilt(self) -> None:
        await self._write(schema.end_rebuild)
        self._rebuilding = False

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._database.write(work if self._rebuilding else partial(_guarded, work))

    async def check(self) -> None:
        """Proves that the file can be read and that a write could begin."""
        await self._database.read(lambda c: c.execute("SELECT count(*) FROM outbox").fetchone())
        await self._write(lambda c: None)

    async def close(self) -> None:
        await self._database.close()


def _guarded(work: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
    if schema.is_rebuilding(connection):
        raise IndexUnavailable("a rebuild has not finished: wait for it, or run `isocenter reindex` again")
    return work(connection)
