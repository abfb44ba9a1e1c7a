"""Turns due studies into settled versions: manifests, revision object, index and event, in this order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace

from isocenter.common.clock import Clock
from isocenter.common.errors import IsocenterError
from isocenter.common.events.models import MAX_MANIFESTS, CloudEvent, StudySettled
from isocenter.common.index.manifest import ManifestWriter
from isocenter.common.index.ports import DueStudy, Index, Settlement
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import Vault
from isocenter.common.telemetry import (
    STUDY_KEY,
    Counter,
    Histogram,
    LogEvent,
    Telemetry,
    context_of,
    current_traceparent,
)
from isocenter.indexer import revision as revisions
from isocenter.indexer.domain import reportable_modalities
from isocenter.indexer.reports import SOURCE, entry_of
from isocenter.indexer.revision import Revision

BATCH = 4
"""Studies settled at the same time: one huge study must not hold up the others."""
CONFIRMATIONS = 100


@dataclass(frozen=True, slots=True)
class Settler:
    """Any number of settlers may work on one index: leases spread the studies, `revision` fences the
    write.
    """

    index: Index
    vault: Vault
    keys: SiteKeys
    clock: Clock
    telemetry: Telemetry
    lease_seconds: float
    outbox_changed: Callable[[], None]

    async def run_once(self) -> int:
        """Settles what is due, up to `BATCH` studies; returns how many it tried.

        A study that fails is logged and comes again when its lease is over.

        Raises:
            IndexUnavailable: nothing could be claimed.
            StoreUnavailable: what settled is not confirmed yet; that is data, too, and done the next time.
        """
        due = await self.index.claim_due(self.clock.now(), self.lease_seconds, BATCH)
        await asyncio.gather(*map(self._settle_guarded, due))
        await self.confirm()
        return len(due)

    async def _settle_guarded(self, due: DueStudy) -> None:
        try:
            await self.settle(due)
        except IsocenterError as error:
            self.telemetry.log.warning(LogEvent.SETTLE_FAILED, study_key=due.study_key, error=error)
        except Exception as error:  # noqa: BLE001 - one study's defect must not stop all the others
            log = self.telemetry.log
            log.error(LogEvent.SETTLE_FAILED, study_key=due.study_key, error=error)  # noqa: TRY400 - not stdlib's

    async def settle(self, due: DueStudy) -> bool:
        """False if instances came meanwhile: the study waits for its next quiet period.

        Raises:
            StoreUnavailable, IndexUnavailable, IntegrityError
        """
        with self.telemetry.tracer.start_as_current_span(
            "settle study",
            context=context_of(due.traceparent),
            kind=trace.SpanKind.INTERNAL,
            attributes={STUDY_KEY: due.study_key, "isocenter.study_version": due.version + 1},
        ) as span:
            revision = await self._record(await self._draft(due))
            settled = await self.index.settle(due, self._settlement(revision))
            span.set_attribute("isocenter.settled", settled)
            if not settled:
                log = self.telemetry.log
                log.info(LogEvent.SETTLE_LOST, study_key=due.study_key, version=revision.version)
                return False
            self.outbox_changed()
            self._tell(due, revision)
            return True

    async def _draft(self, due: DueStudy) -> Revision:
        """Writes the manifests; the revision it returns is not recorded yet."""
        manifests: dict[str, str] = {}
        object_keys: list[str] = []
        size = 0
        for series in await self.index.list_series(due.study_instance_uid):
            writer: ManifestWriter | None = None
            async for record in self.index.instances(due.study_instance_uid, series.series_instance_uid):
                writer = writer or ManifestWriter(record)
                await asyncio.to_thread(writer.add, record)
                object_keys.append(record.object_key)
                size += record.size_bytes
            if writer is not None:
                key, plaintext = writer.finish(self.keys)
                await self.vault.put(key, SealContext(due.study_key, key), plaintext)
                manifests[series.series_key] = key
        study = await self.index.get_study(due.study_instance_uid)
        return Revision(
            study_key=due.study_key,
            version=due.version + 1,
            content=revisions.content_of(self.keys, object_keys),
            reason=due.reason,
            settled_at=self.clock.now(),
            event_id=self.clock.new_id(),
            series=len(manifests),
            instances=len(object_keys),
            size_bytes=size,
            modalities=tuple(reportable_modalities(study.modalities if study else ())),
            manifests=dict(sorted(manifests.items())),
        )

    async def _record(self, draft: Revision) -> Revision:
        """Writes the revision object, or adopts the one that a settler wrote before it died."""
        context = SealContext(draft.study_key, draft.object_key)
        put = await self.vault.put(draft.object_key, context, revisions.dump(draft))
        if put.created:
            return draft
        return revisions.parse(await self.vault.get(draft.object_key, context))

    async def confirm(self) -> None:
        """Writes what says that a revision is settled and told; also after a crash, whoever settled it.

        Raises:
            StoreUnavailable, IndexUnavailable
        """
        while keys := await self.index.pending_confirmations(CONFIRMATIONS):
            for key in keys:
                await self.vault.store.put(key, b"")
            await self.index.confirmations_written(keys)

    def _settlement(self, revision: Revision) -> Settlement:
        event = CloudEvent(
            id=revision.event_id,
            source=SOURCE,
            time=revision.settled_at,
            data=StudySettled(
                study_key=revision.study_key,
                version=revision.version,
                reason=revision.reason,
                series=revision.series,
                instances=revision.instances,
                size_bytes=revision.size_bytes,
                modalities=list(revision.modalities),
                revision=revision.object_key,
                manifests=_listed(revision.manifests),
                settled_at=revision.settled_at,
            ),
            sequence=revision.version,
        )
        return Settlement(
            version=revision.version,
            reason=revision.reason,
            settled_at=revision.settled_at,
            manifests=revision.manifests,
            event=event,
            entry=entry_of(event, current_traceparent()),
            confirmation=revision.settled_key,
        )

    def _tell(self, due: DueStudy, revision: Revision) -> None:
        lateness = max(0.0, (self.clock.now() - due.due_at).total_seconds())
        self.telemetry.metrics.record(Histogram.SETTLE_LATENESS, lateness)
        self.telemetry.metrics.add(Counter.STUDIES_SETTLED, reason=revision.reason.value)
        self.telemetry.log.info(
            LogEvent.STUDY_SETTLED,
            study_key=revision.study_key,
            version=revision.version,
            reason=revision.reason.value,
            series=revision.series,
            instances=revision.instances,
            bytes=revision.size_bytes,
        )


def _listed(manifests: dict[str, str]) -> list[str]:
    """What fits the event: all of them, or none, and then the revision object has them."""
    keys = [key for _, key in sorted(manifests.items())]
    return keys if len(keys) <= MAX_MANIFESTS else []
