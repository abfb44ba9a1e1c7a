"""The whole index from objects: `isocenter reindex`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from isocenter.common.errors import IntegrityError, Misconfigured, NotFound, Transient
from isocenter.common.events.models import SettleReason
from isocenter.common.index.ports import Index, RestoredRevision
from isocenter.common.index.records import InstanceRecord
from isocenter.common.objects.ports import ObjectInfo, ObjectStore
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import Vault
from isocenter.common.service import Ports
from isocenter.common.telemetry import LogEvent
from isocenter.indexer import revision as revisions
from isocenter.indexer.domain import SettlingPolicy
from isocenter.indexer.parsers import parser_pool
from isocenter.indexer.reading import RecordReader, Unreadable
from isocenter.indexer.reports import no_reports
from isocenter.indexer.revision import Revision

INSTANCES = "instances/"
WINDOW = 2_000
"""Records held in memory until they are written by study."""
BATCH = 200
READ_AHEAD = 50

Progress = Callable[[str, int], None]
"""Phase (`instances` or `revisions`) and objects done so far. Called often; must return at once."""


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild found.

    Attributes:
        known: objects that were indexed already in this run: always 0 unless the store lists a key twice.
        unreadable: objects that are kept but cannot be indexed, each with its error.
        to_settle: studies that hold other instances than their last revision, or whose last revision was
            being written when the process died; the settler sees to them.
    """

    objects: int = 0
    instances: int = 0
    known: int = 0
    conflicts: int = 0
    studies: int = 0
    revisions: int = 0
    settled: int = 0
    to_settle: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)


async def rebuild(
    ports: Ports,
    progress: Progress | None = None,
    *,
    policy: SettlingPolicy | None = None,
    parsers: int = 0,
) -> RebuildReport:
    """Clears the index and fills it from the objects alone.

    The result equals the index that was lost (`IndexReader.dump`), except for a study whose settling was cut
    off by a crash: that one settles again with the same version, and then it is equal. No events go out. The
    order in which objects are read does not matter. If it stops before the end, the index stays closed to
    other writers: run it again.

    Args:
        ports: what to read from and to write to.
        progress: is told how far it is.
        policy: when studies that have not settled settle.
        parsers: child processes that parse headers, as `IndexerSettings.parsers`.

    Raises:
        Misconfigured: these ports have no index.
        StoreUnavailable, IndexUnavailable
    """
    if ports.index is None:
        raise Misconfigured("a rebuild needs an index")
    pool = parser_pool(parsers, ports.telemetry)
    vault = Vault(ports.store, ports.sealing)
    run = _Rebuild(
        index=ports.index,
        store=ports.store,
        vault=vault,
        records=RecordReader(vault, ports.keys, READ_AHEAD, pool),
        ports=ports,
        policy=policy or SettlingPolicy(),
        progress=progress or (lambda phase, done: None),
    )
    ports.telemetry.log.info(LogEvent.REINDEX_STARTED)
    try:
        await run.index.clear()
        await run.instances()
        await run.revisions()
    finally:
        if pool is not None:
            await pool.close()
    await run.index.rebuilt()
    report = run.report
    ports.telemetry.log.info(
        LogEvent.REINDEX_FINISHED,
        instances=report.instances,
        conflicts=report.conflicts,
        count=report.studies,
        rejected=len(report.unreadable),
    )
    return report


@dataclass(slots=True)
class _Rebuild:
    index: Index
    store: ObjectStore
    vault: Vault
    records: RecordReader
    ports: Ports
    policy: SettlingPolicy
    progress: Progress
    report: RebuildReport = field(default_factory=RebuildReport)
    window: list[InstanceRecord] = field(default_factory=list)

    async def instances(self) -> None:
        ahead: list[ObjectInfo] = []
        async for info in self._listed(INSTANCES):
            ahead.append(info)
            if len(ahead) == READ_AHEAD:
                await self._read(ahead)
                ahead = []
        await self._read(ahead)
        await self._flush()

    async def _listed(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Everything that can be listed: one damaged file must not keep all the others from being found."""
        try:
            async for info in self.store.list(prefix):
                yield info
        except IntegrityError as error:
            # Raised after the sound ones; it counts the damaged ones and names the first.
            fault = Unreadable(str(error.ids.get("first", prefix)), error)
            self.report.unreadable.append(fault)
            self.ports.telemetry.log.warning(
                LogEvent.INSTANCE_UNREADABLE, object_key=fault.object_key, error=error
            )

    async def _read(self, infos: list[ObjectInfo]) -> None:
        objects: list[tuple[str, str]] = []
        outcomes: list[InstanceRecord | Unreadable] = []
        for info in infos:
            if study_key := info.metadata.get("study_key"):
                objects.append((study_key, info.key))
            else:
                fault = IntegrityError("object has no study key", object_key=info.key)
                outcomes.append(Unreadable(info.key, fault))
        for outcome in outcomes + await self.records.read_each(objects):
            if isinstance(outcome, InstanceRecord):
                self.window.append(outcome)
            elif isinstance(outcome.error, Transient):
                raise outcome.error
            elif not isinstance(outcome.error, NotFound):  # that one was deleted since it was listed
                self.report.unreadable.append(outcome)
                self.ports.telemetry.log.warning(
                    LogEvent.INSTANCE_UNREADABLE, object_key=outcome.object_key, error=outcome.error
                )
        self.report.objects += len(infos)
        self.progress("instances", self.report.objects)
        if len(self.window) >= WINDOW:
            await self._flush()

    async def _flush(self) -> None:
        by_study: dict[str, list[InstanceRecord]] = {}
        for record in self.window:
            by_study.setdefault(record.study_key, []).append(record)
        self.window = []
        for records in by_study.values():
            for start in range(0, len(records), BATCH):
                applied = await self.index.apply(
                    records[start : start + BATCH],
                    self.policy.arrival(self.ports.clock.now(), None, None),
                    no_reports,
                )
                self.report.instances += len(applied.new)
                self.report.conflicts += len(applied.conflicts)
                self.report.known += applied.duplicates

    async def revisions(self) -> None:
        """Revision keys begin with the study key: one study after the other, in one pass over the list."""
        study_key = ""
        keys: list[str] = []
        async for info in self._listed(revisions.PREFIX):
            of_study = info.key.removeprefix(revisions.PREFIX).partition("/")[0]
            if of_study != study_key:
                await self._restore(study_key, keys)
                study_key, keys = of_study, []
            keys.append(info.key)
            self.report.revisions += not info.key.endswith(revisions.SETTLED)
            self.progress("revisions", self.report.revisions)
        await self._restore(study_key, keys)
        backlog = await self.index.backlog()
        self.report.to_settle = backlog.receiving
        self.report.studies = backlog.receiving + self.report.settled

    async def _restore(self, study_key: str, keys: list[str]) -> None:
        study = await self.index.find_study(study_key) if keys else None
        if study is None:
            return  # the objects of this study are gone
        found: list[Revision] = []
        for key in keys:
            if key.endswith(revisions.SETTLED):
                continue
            try:
                found.append(revisions.parse(await self.vault.get(key, SealContext(study_key, key))))
            except IntegrityError as error:
                self.report.unreadable.append(Unreadable(key, error))
        object_keys = [record.object_key async for record in self.index.instances(study.study_instance_uid)]
        choice = revisions.choose(
            found,
            frozenset(key.removesuffix(revisions.SETTLED) for key in keys if key.endswith(revisions.SETTLED)),
            revisions.content_of(self.records.keys, object_keys),
        )
        lost = {key.removesuffix(revisions.SETTLED) for key in keys} - {one.object_key for one in found}
        taken = max((revisions.version_of(key) for key in lost), default=0)
        last, settled = choice.revision, choice.settled
        if taken > (last.version if last else 0):
            # What that version held cannot be read any more, but it was given: it must not be given again.
            settled = False
        elif last is None:
            return
        else:
            taken = last.version
        self.report.settled += settled
        await self.index.restore_revision(
            study.study_instance_uid,
            RestoredRevision(
                version=taken,
                reason=last.reason if last else SettleReason.MANUAL,
                settled_at=last.settled_at if last else self.ports.clock.now(),
                manifests=last.manifests if last else {},
            ),
            settled=settled,
        )
