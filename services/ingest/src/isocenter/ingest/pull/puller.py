"""Handles `study.announced`: finds the source, brings what is missing, and judges what came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from isocenter.common.errors import BusUnavailable, IsocenterError, StoreUnavailable
from isocenter.common.events.models import CloudEvent, Protocol, StudyAnnounced
from isocenter.ingest.pull.dicomweb import DicomwebRemote
from isocenter.ingest.pull.dimse import DimseRemote
from isocenter.ingest.pull.domain import PullError, PullFailed, PullReason, PullRefused, Tally, judge
from isocenter.ingest.pull.s3 import S3Remote
from isocenter.ingest.pull.sources import AnySource, DicomwebSource, S3Source, Sources
from isocenter.ingest.stow.multipart import MalformedMultipart, MultipartReader, PartBegin, PartData
from isocenter.ingest.stow.routes import Reception, StowLimits

if TYPE_CHECKING:
    from isocenter.common.index.ports import IndexReader
    from isocenter.ingest.domain import Announced, Outcome
    from isocenter.ingest.pipeline import Intake, Transfer
    from isocenter.ingest.pull.ports import Remote

GROUP = "announced"
"""Handler's part of the consumer group's name."""


class Puller:
    """One study at a time per process; replicas share the announcements.

    Args:
        index: where one is there, instances that it knows are not fetched again.
        limit_seconds: for one attempt. What came until then stays, and the next attempt goes on from there.
    """

    def __init__(
        self,
        intake: Intake,
        sources: Sources,
        *,
        index: IndexReader | None,
        our_ae_title: str,
        limit_seconds: float,
    ) -> None:
        self._intake = intake
        self._sources = sources
        self._index = index
        self._ours = our_ae_title
        self._limit = limit_seconds
        self._halted = asyncio.Event()

    def halt(self) -> None:
        """The pull in hand breaks off: its announcement comes again."""
        self._halted.set()

    async def study_announced(self, event: CloudEvent) -> None:
        """Returns when everything announced is durable.

        Raises:
            PullRefused, PullFailed: see `PullReason`.
        """
        if not isinstance(event.data, StudyAnnounced):
            raise TypeError(f"not an announcement: {event.type}")
        began = time.perf_counter()
        signals, keys = self._intake.signals, self._intake.ports.keys
        study_key = keys.study_key(event.data.study_instance_uid)
        kind, name, tally = event.data.location.kind.value, "", Tally()
        try:
            source, path = self._sources.find(event.data.location)
            name = source.name
            signals.pull_started(study_key, kind, name)
            await self._unless_halted(self._pull(source, path, event.data, tally))
        except (PullRefused, PullFailed) as error:
            signals.pull_failed(study_key, kind, name, error, tally, time.perf_counter() - began)
            raise
        signals.pull_completed(study_key, kind, name, tally, time.perf_counter() - began)

    async def _unless_halted(self, pulling: Coroutine[Any, Any, None]) -> None:
        work = asyncio.ensure_future(pulling)
        halted = asyncio.ensure_future(self._halted.wait())
        try:
            await asyncio.wait({work, halted}, timeout=self._limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            halted.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if work.cancelled():
            raise PullFailed(PullReason.TOO_SLOW)
        await work

    async def _pull(self, source: AnySource, path: str, announced: StudyAnnounced, tally: Tally) -> None:
        study = announced.study_instance_uid
        remote = self._open(source, path, study)
        signals = self._intake.signals
        try:
            here = await self._here(study)
            places = await remote.places() if here else None
            with signals.transfer("pull", Protocol.PULL, source.name) as span:
                async with self._intake.transfer(Protocol.PULL, source.name) as transfer:
                    transfer.aborted = True
                    try:
                        await remote.fetch(_Sink(transfer, source, study, tally), here, places)
                        transfer.aborted = False
                    finally:
                        signals.transfer_ended(span, transfer)
        except (StoreUnavailable, BusUnavailable):
            raise PullFailed(PullReason.STORE_UNAVAILABLE) from None
        finally:
            await remote.close()
        verdict = judge(tally, announced.instances)
        if verdict is not None:
            raise verdict

    def _open(self, source: AnySource, path: str, study: str) -> Remote:
        if isinstance(source, DicomwebSource):
            return DicomwebRemote(source, path, study)
        if isinstance(source, S3Source):
            return S3Remote(source, path, limit_seconds=self._limit)
        return DimseRemote(source, study, our_ae_title=self._ours)

    async def _here(self, study: str) -> set[str]:
        """SOP Instance UIDs that the index knows. Without an index, or while it is down: none, and more is
        fetched than need be.
        """
        if self._index is None:
            return set()
        try:
            return {record.sop_instance_uid async for record in self._index.instances(study)}
        except IsocenterError:
            return set()


class _Sink:
    """See `isocenter.ingest.pull.ports.Sink`."""

    def __init__(self, transfer: Transfer, source: AnySource, study: str, tally: Tally) -> None:
        self._transfer = transfer
        self._source = source
        self._study = study
        self._tally = tally
        self._bytes = 0
        self._begun = 0

    async def store(self, data: AsyncIterable[bytes], announced: Announced | None = None) -> Outcome:
        self._begin()
        async with self._transfer.instance(announced=announced, expected_study=self._study) as receiver:
            async for piece in data:
                self._take(len(piece))
                await receiver.write(piece)
            outcome = await receiver.finish()
        self._tally.note(outcome)
        return outcome

    async def parts(self, boundary: str, body: AsyncIterable[bytes]) -> None:
        reader = MultipartReader(boundary, max_parts=self._source.max_instances + 1)
        reception = Reception(self._transfer, self._study, StowLimits(in_hand=self._source.connections))
        try:
            async with reception:
                async for data in body:
                    self._take(len(data))
                    for piece in reader.feed(data):
                        if isinstance(piece, PartData):
                            await reception.write(piece.data)
                        elif isinstance(piece, PartBegin):
                            self._begin()
                            reception.begin(piece.headers.get("content-type"))
                        else:
                            await reception.end()
                try:
                    reader.finish()
                except MalformedMultipart:
                    raise PullFailed(PullReason.SOURCE_UNAVAILABLE) from None
        except MalformedMultipart:
            raise PullRefused(PullReason.MALFORMED_ANSWER) from None
        finally:
            for outcome in reception.outcomes:
                self._tally.note(outcome)

    def known(self, sop_instance_uids: Sequence[str]) -> None:
        self._tally.skip(sop_instance_uids)

    def _begin(self) -> None:
        self._begun += 1
        if self._begun > self._source.max_instances:
            raise PullRefused(PullReason.TOO_LARGE)

    def _take(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._source.max_bytes:
            raise PullRefused(PullReason.TOO_LARGE)


__all__ = ["GROUP", "PullError", "Puller"]
