"""The staged series of this node: what processes on it ask for, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace

from isocenter.common.clock import Clock
from isocenter.common.errors import NotFound
from isocenter.common.events.models import CloudEvent
from isocenter.common.index.ports import IndexReader
from isocenter.common.index.query import Level, Qualified, Query
from isocenter.common.index.records import StudyRecord
from isocenter.common.keys import SiteKeys
from isocenter.common.telemetry import STUDY_KEY, Counter, Gauge, Histogram, LogEvent, Telemetry
from isocenter.gpu_stager import domain
from isocenter.gpu_stager.building import Builder
from isocenter.gpu_stager.cache.ledger import Pin, Priority, Row
from isocenter.gpu_stager.cache.staging import Cache, Lease, Making, Staged, Wanted
from isocenter.gpu_stager.cache.states import State
from isocenter.gpu_stager.domain import SeriesRef
from isocenter.gpu_stager.manifest import Entry
from isocenter.gpu_stager.modes.verdict import Verdict
from isocenter.gpu_stager.pixels.facts import NotStageable
from isocenter.gpu_stager.pixels.plan import Plan
from isocenter.gpu_stager.reports import Reports

PRIORS_LOOKED_AT: Final = 50
"""The newest studies of a patient."""


@dataclass
class Node:
    """See `agent.server.Node`."""

    name: str
    cache: Cache
    builder: Builder
    index: IndexReader
    keys: SiteKeys
    clock: Clock
    telemetry: Telemetry
    reports: Reports
    verdict: Verdict

    async def resolve(self, target: str) -> list[SeriesRef]:
        """The settled series of `STUDY` or `STUDY/SERIES`, each a UID or a key.

        Raises:
            NotFound: there is no such study or series, or it has not settled yet.
            IndexUnavailable
        """
        study_name, _, series_name = target.partition("/")
        study = await self.index.find_study(study_name)
        if study is None:
            raise NotFound("no such study")
        series_key = self._series_key(series_name) if series_name else None
        found = domain.series_of(study, series_key)
        if not found:
            what = "no such series" if study.manifests else "the study has not settled yet"
            raise NotFound(what, study_key=study.study_key)
        return found

    def _series_key(self, name: str) -> str:
        return self.keys.series_key(name) if "." in name else name

    async def stage_series(
        self,
        ref: SeriesRef,
        *,
        priority: Priority,
        pin: Pin = Pin.NONE,
        forced: bool = False,
        cause: CloudEvent | None = None,
    ) -> Staged:
        """Brings one series here. A copy of an older version goes.

        Raises:
            NotStageable, TooLarge, Overloaded, IntegrityError, StoreUnavailable, Failed
        """
        with self.telemetry.tracer.start_as_current_span(
            "stage series",
            attributes={STUDY_KEY: ref.study_key, "isocenter.series_key": ref.series_key},
        ) as span:
            plan = await self.builder.plan(ref.study_key, ref.manifest_key)
            wanted = Wanted(plan.name, plan.study_key, plan.series_key, plan.modality, plan.size_bytes)

            async def build(folder: Path, progress: Making) -> Entry:
                return await self.builder.build(plan, folder, progress)

            staged = await self.cache.stage(wanted, build, priority=priority, pin=pin, forced=forced)
            span.set_attributes(
                {
                    "isocenter.stager.hit": staged.hit,
                    "isocenter.stager.bytes": plan.size_bytes,
                    "isocenter.stager.node": self.name,
                    "isocenter.stager.mode": self.verdict.mode.value,
                }
            )
            outcome = "hit" if staged.hit else "staged"
            self.telemetry.metrics.add(Counter.STAGER_REQUESTS, outcome=outcome)
            if not staged.hit:
                self._ready(plan, ref, staged, cause)
                await self._supersede(plan)
            return staged

    def _ready(self, plan: Plan, ref: SeriesRef, staged: Staged, cause: CloudEvent | None) -> None:
        received = max((entry.received_at for entry in plan.entries), default=None)
        row = self.cache.ledger.rows.get(staged.name)
        metrics = self.telemetry.metrics
        metrics.record(Histogram.STAGER_STAGE, staged.seconds)
        if received is not None and cause is not None:
            waited = (self.clock.now() - received).total_seconds()
            metrics.record(Histogram.STAGER_LATENCY, max(0.0, waited))
            span = trace.get_current_span()
            span.set_attribute("isocenter.stager.latency_seconds", waited)
        self.telemetry.log.info(
            LogEvent.SERIES_STAGED,
            study_key=plan.study_key,
            series_key=plan.series_key,
            entry=plan.name,
            bytes=plan.size_bytes,
            instances=len(plan.entries),
            seconds=round(staged.seconds, 3),
        )
        if row is not None:
            self.reports.staged(
                row,
                mode=self.verdict.mode,
                stacks=len(plan.stacks),
                version=ref.version,
                received_at=received,
                cause=cause,
            )

    async def _supersede(self, plan: Plan) -> None:
        """Copies of the same series with other content: whoever holds one keeps it, nobody new gets it."""
        await self.cache.drop(series_key=plan.series_key, study_key=plan.study_key, keep=plan.name)

    async def stage(self, target: str, *, priority: Priority, pin: Pin, forced: bool) -> list[dict[str, Any]]:
        """Every series of the target that has pixels. Raises as `resolve` and `stage_series`; NotStageable
        only where none has.
        """
        done: list[dict[str, Any]] = []
        refused: NotStageable | None = None
        for ref in await self.resolve(target):
            try:
                staged = await self.stage_series(ref, priority=priority, pin=pin, forced=forced)
            except NotStageable as error:
                refused = error
                continue
            row = self.cache.ledger.rows.get(staged.name)
            done.append(
                {
                    "name": staged.name,
                    "series_key": ref.series_key,
                    "path": str(staged.path),
                    "bytes": row.bytes if row is not None else 0,
                    "modality": row.modality if row is not None else "",
                    "hit": staged.hit,
                    "seconds": round(staged.seconds, 6),
                    "mode": self.verdict.mode.value,
                }
            )
        if not done and refused is not None:
            raise refused
        return done

    async def open(self, target: str, *, stage: bool, priority: Priority) -> list[Lease]:
        """Raises as `stage`; NotFound without `stage` where nothing of it is here."""
        names: list[str] = []
        if stage:
            names = [
                one["name"] for one in await self.stage(target, priority=priority, pin=Pin.NONE, forced=False)
            ]
        else:
            study_name, _, series_name = target.partition("/")
            study_key = self.keys.study_key(study_name) if "." in study_name else study_name
            series_key = self._series_key(series_name) if series_name else None
            names = [row.name for row in self.cache.find(study_key=study_key, series_key=series_key)]
        leases = [lease for name in names if (lease := self.cache.lease(name)) is not None]
        if len(leases) < len(names) or not leases:
            for lease in leases:
                self.cache.release(lease)
            raise NotFound("not staged on this node")
        return leases

    def renew(self, lease: Lease) -> bool:
        return self.cache.renew(lease)

    def release(self, lease: Lease) -> None:
        self.cache.release(lease)

    async def evict(self, target: str) -> list[str]:
        """Ready entries of a study, a series or all (`*`) that nobody holds."""
        study_name, _, series_name = target.partition("/")
        study_key = self.keys.study_key(study_name) if "." in study_name else study_name
        rows = self.cache.find(
            study_key=None if target == "*" else study_key,
            series_key=self._series_key(series_name) if series_name else None,
        )
        return [row.name for row in rows if await self.cache.evict(row.name)]

    async def damaged(self, name: str) -> None:
        row = self.cache.ledger.rows.get(name)
        if row is not None:
            self.telemetry.log.error(LogEvent.STAGED_DAMAGED, study_key=row.study_key, entry=name)
        await self.cache.damaged(name)

    def opened(self, lease: Lease, loaded: dict[str, Any]) -> None:
        """An access to patient data: in the log, by keys."""
        row = self.cache.ledger.rows.get(lease.name)
        mode = str(loaded.get("mode", "numpy"))[:32]
        size, seconds = int(loaded.get("bytes", 0)), float(loaded.get("seconds", 0.0))
        metrics = self.telemetry.metrics
        metrics.add(Counter.STAGER_LOADS, mode=mode)
        metrics.add(Counter.STAGER_LOADED_BYTES, size, mode=mode)
        metrics.record(Histogram.STAGER_LOAD, seconds, mode=mode)
        self.telemetry.log.info(
            LogEvent.STAGED_LOADED,
            study_key=row.study_key if row is not None else "",
            entry=lease.name,
            bytes=size,
            seconds=round(seconds, 4),
            mode=mode,
        )

    def told(self, kind: str, row: Row, reason: str) -> None:
        """What the cache says of an entry."""
        log, metrics = self.telemetry.log, self.telemetry.metrics
        if kind == "evicted":
            metrics.add(Counter.STAGER_EVICTIONS, reason=reason)
            log.info(LogEvent.SERIES_EVICTED, study_key=row.study_key, entry=row.name, reason=reason)
            self.reports.evicted(row, reason)
        elif kind == "failed":
            metrics.add(Counter.STAGER_REQUESTS, outcome="failed")
            log.warning(LogEvent.STAGING_FAILED, study_key=row.study_key, entry=row.name, error=reason)

    def status(self) -> dict[str, Any]:
        ledger, now = self.cache.ledger, self.cache.now()
        return {
            "node": self.name,
            "verdict": self.verdict.to_json(),
            "mode": self.verdict.mode.value,
            "quota_bytes": ledger.limits.quota_bytes,
            "charged_bytes": ledger.charged,
            "hits": ledger.hits,
            "misses": ledger.misses,
            "prefetch_used": ledger.prefetch_used,
            "prefetch_dropped": ledger.prefetch_dropped,
            "broken_disks": sorted(self.cache.broken.values()),
            "entries": [
                {
                    "name": row.name,
                    "study_key": row.study_key,
                    "series_key": row.series_key,
                    "modality": row.modality,
                    "state": row.state.value,
                    "bytes": row.bytes,
                    "leases": len(row.leases),
                    "pin": row.pinned(now).value,
                    "priority": row.priority.name.lower(),
                    "hits": row.hits,
                    "idle_seconds": round(now - row.last_used, 1),
                    "failures": row.failures,
                }
                for row in sorted(ledger.rows.values(), key=lambda row: -row.last_used)
            ],
        }

    def measure(self) -> None:
        """Gauges, for the next scrape."""
        metrics, rows = self.telemetry.metrics, self.cache.ledger.rows.values()
        sizes = {"ready": 0, "making": 0, "evicting": 0}
        for row in rows:
            if row.making:
                sizes["making"] += row.bytes
            elif row.state in {State.READY, State.EVICTING}:
                sizes[row.state.value] += row.bytes
        for state, size in sizes.items():
            metrics.set(Gauge.STAGER_BYTES, size, state=state)
        metrics.set(Gauge.STAGER_QUOTA, self.cache.ledger.limits.quota_bytes)
        metrics.set(Gauge.STAGER_LEASES, sum(len(row.leases) for row in rows))

    async def priors_of(self, study: StudyRecord, count: int) -> list[StudyRecord]:
        """Raises IndexUnavailable."""
        if not count:
            return []
        issuer, patient_id = study.patient
        where = Qualified(("00100020",), patient_id, issuer)
        page = await self.index.search(Query(Level.STUDY, where=where, limit=PRIORS_LOOKED_AT))
        others = [await self.index.get_study(match.study_instance_uid) for match in page.matches]
        return domain.priors(study, [other for other in others if other is not None], count)
