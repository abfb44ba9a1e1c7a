"""`MongoIndex`: the `Index` port over a MongoDB replica set."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from isocenter.common.errors import IndexUnavailable
from isocenter.common.index.commitments import Commitment, Located, Step
from isocenter.common.index.mongo import arrivals, commitments, outbox, reading, search, settling
from isocenter.common.index.mongo.driver import Database, translated
from isocenter.common.index.mongo.schema import RebuildFence, prepare
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
from isocenter.common.settings import MongoSettings

T = TypeVar("T")

TURN_SECONDS = 30.0
"""How long a write waits for others of the same study in this process."""


class MongoIndex:
    """See `isocenter.common.index.ports.Index`. Any number of processes read and write.

    Durable: a write that returned is journaled by a majority. Every method raises IndexUnavailable within
    seconds when there is no primary or it does not answer, and works again by itself when there is one.
    """

    def __init__(self, database: Database, default_issuer: str) -> None:
        self._database = database
        self._default_issuer = default_issuer
        self._fence = RebuildFence(database)
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @classmethod
    async def open(cls, settings: MongoSettings, *, default_issuer: str) -> MongoIndex:
        """Creates collections and indexes that are missing.

        Args:
            settings: `uri` is set.
            default_issuer: who assigned identifiers whose data set names nobody. Applied when records are
                read, so it can be changed without a rebuild.

        Raises:
            Misconfigured: no replica set, wrong credentials, the database is another program's or of another
                schema version.
            IndexUnavailable
        """
        database = await Database.open(settings)
        try:
            async with translated():
                await prepare(database)
        except BaseException:
            await database.close()
            raise
        return cls(database, default_issuer)

    async def search(self, query: Query) -> Page:
        async with translated():
            return await search.search(self._database, query, self._default_issuer)

    async def get_study(self, study_instance_uid: str) -> StudyRecord | None:
        async with translated():
            return await reading.study(self._database, study_instance_uid, self._default_issuer, by_key=False)

    async def find_study(self, study: str) -> StudyRecord | None:
        async with translated():
            return await reading.study(self._database, study, self._default_issuer, by_key=True)

    async def list_series(self, study_instance_uid: str) -> list[SeriesRecord]:
        async with translated():
            return await reading.series_of(self._database, study_instance_uid)

    async def instances(
        self,
        study_instance_uid: str,
        series_instance_uid: str | None = None,
        sop_instance_uid: str | None = None,
    ) -> AsyncIterator[InstanceRecord]:
        after: reading.InstanceKey | None = None
        while True:
            async with translated():
                page, after = await reading.instances_after(
                    self._database, study_instance_uid, series_instance_uid, sop_instance_uid, after
                )
            for record in page:
                yield record
            if after is None:
                return

    async def conflicts(self, study_instance_uid: str) -> list[ConflictRecord]:
        async with translated():
            return await reading.conflicts_of(self._database, study_instance_uid)

    async def studies(self) -> AsyncIterator[StudyRecord]:
        after: reading.StudyKey | None = None
        while True:
            async with translated():
                page, after = await reading.studies_after(self._database, self._default_issuer, after)
            for record in page:
                yield record
            if after is None:
                return

    async def dump(self) -> AsyncIterator[str]:
        last = ""
        async with translated():
            while uids := await reading.study_uids_after(self._database, last):
                last = uids[-1]
                for uid in uids:
                    async for line in reading.dump_study(self._database, uid):
                        yield line

    async def apply(
        self, instances: Sequence[InstanceRecord], arrival: Arrival, outbox: OutboxBuilder
    ) -> Applied:
        study_uid, _ = arrivals.names_of(instances)
        return await self._in_turn(
            study_uid,
            lambda session: arrivals.apply(self._database, session, instances, arrival, outbox),
        )

    async def close_transfer(
        self, study_key: str, settle_at: datetime, transfer_id: str | None = None
    ) -> bool:
        return await self._transaction(
            lambda session: settling.close_transfer(
                self._database, session, study_key, settle_at, transfer_id
            )
        )

    async def settle_now(self, study_key: str, now: datetime) -> bool:
        return await self._write(partial(settling.settle_now, self._database, study_key, now))

    async def claim_due(self, now: datetime, lease_seconds: float, limit: int) -> list[DueStudy]:
        return await self._write(partial(settling.claim_due, self._database, now, lease_seconds, limit))

    async def settle(self, due: DueStudy, settlement: Settlement) -> bool:
        if settlement.version != due.version + 1:
            raise ValueError("a settlement writes the version after the claimed one")
        settled = await self._in_turn(
            due.study_instance_uid,
            lambda session: settling.settle(self._database, session, due, settlement),
        )
        if settled:
            with suppress(IndexUnavailable):  # what is left behind is not counted, and goes the next time
                async with translated():
                    await settling.forget_transfers(self._database, due.study_instance_uid)
        return settled

    async def pending_outbox(self, limit: int) -> list[OutboxEntry]:
        async with translated():
            return await outbox.pending(self._database, limit)

    async def outbox_published(self, event_ids: Sequence[str]) -> None:
        await self._write(partial(outbox.published, self._database, event_ids))

    async def pending_confirmations(self, limit: int) -> list[str]:
        async with translated():
            return await settling.pending_confirmations(self._database, limit)

    async def confirmations_written(self, object_keys: Sequence[str]) -> None:
        await self._write(partial(settling.confirmations_written, self._database, object_keys))

    async def restore_revision(
        self, study_instance_uid: str, restored: RestoredRevision, *, settled: bool
    ) -> None:
        await self._transaction(
            lambda session: settling.restore(
                self._database, session, study_instance_uid, restored, settled=settled
            )
        )

    async def backlog(self) -> Backlog:
        async with translated():
            return await settling.backlog(self._database)

    async def create_commitment(self, commitment: Commitment) -> Commitment:
        return await self._write(partial(commitments.create, self._database, commitment))

    async def get_commitment(self, requester: str, transaction_uid: str) -> Commitment | None:
        async with translated():
            return await commitments.get(self._database, requester, transaction_uid)

    async def claim_commitments(self, now: datetime, lease_seconds: float, limit: int) -> list[Commitment]:
        return await self._write(partial(commitments.claim, self._database, now, lease_seconds, limit))

    async def renew_commitment(self, commitment: Commitment, until: datetime) -> bool:
        return await self._write(partial(commitments.renew, self._database, commitment, until))

    async def advance_commitment(self, commitment: Commitment, step: Step) -> bool:
        return await self._write(partial(commitments.advance, self._database, commitment, step))

    async def repeat_commitment(self, commitment: Commitment, now: datetime) -> bool:
        return await self._write(partial(commitments.repeat, self._database, commitment, now))

    async def purge_commitments(self, before: datetime) -> int:
        return await self._write(partial(commitments.purge, self._database, before))

    async def commitments(self, limit: int) -> list[Commitment]:
        async with translated():
            return await commitments.newest(self._database, limit)

    async def locate(self, sop_instance_uids: Sequence[str]) -> list[Located]:
        found = await self._write(partial(commitments.locate, self._database, sop_instance_uids))
        async with translated():
            await self._fence.check()  # a rebuild that began meanwhile may have emptied what was read
        return found

    async def clear(self) -> None:
        async with translated():
            await self._fence.begin()

    async def rebuilt(self) -> None:
        async with translated():
            await self._fence.end()

    async def check(self) -> None:
        """Proves that there is a primary and that a write could begin."""
        await self._write(self._database.require_replica_set)

    async def close(self) -> None:
        await self._database.close()

    async def _write(self, work: Callable[[], Awaitable[T]]) -> T:
        """One write of one document, or several that need not be one."""
        async with translated():
            await self._fence.check()
            return await work()

    async def _in_turn(self, study_uid: str, work: Callable[[Any], Awaitable[tuple[bool, T]]]) -> T:
        """Transactions of one study one after another in this process: they would only undo each other."""
        turn = self._turns.setdefault(study_uid, asyncio.Lock())
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await turn.acquire()
        except TimeoutError:
            raise IndexUnavailable("too many writes of one study wait for each other") from None
        try:
            return await self._transaction(work)
        finally:
            turn.release()

    async def _transaction(self, work: Callable[[Any], Awaitable[tuple[bool, T]]]) -> T:
        async def fenced(session: Any) -> tuple[bool, T]:
            await self._fence.check(session)
            return await work(session)

        return await self._database.transaction(fenced)
