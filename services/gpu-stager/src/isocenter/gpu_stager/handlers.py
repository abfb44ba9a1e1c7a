"""What the stager does with events. An event may come twice, late, or for a study that is gone."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry import trace

from isocenter.common.errors import IsocenterError, Overloaded, Transient
from isocenter.common.events.models import (
    CloudEvent,
    PinKind,
    StagePriority,
    StageStudy,
    StudySettled,
    UnstageStudy,
)
from isocenter.common.telemetry import STUDY_KEY, LogEvent, Telemetry
from isocenter.gpu_stager import domain
from isocenter.gpu_stager.cache.ledger import Pin, Priority
from isocenter.gpu_stager.cache.staging import Failed
from isocenter.gpu_stager.domain import SeriesRef
from isocenter.gpu_stager.node import Node
from isocenter.gpu_stager.pixels.facts import NotStageable

PRIORITIES = {
    StagePriority.STAT: Priority.STAT,
    StagePriority.INFERENCE: Priority.INFERENCE,
    StagePriority.PRIOR: Priority.PRIOR,
    StagePriority.BULK: Priority.BULK,
    StagePriority.UNKNOWN: Priority.BULK,
}
PINS = {PinKind.NONE: Pin.NONE, PinKind.SOFT: Pin.SOFT, PinKind.HARD: Pin.HARD, PinKind.UNKNOWN: Pin.NONE}


@dataclass(frozen=True, slots=True)
class Handlers:
    """One consumer group for all nodes of a site: the node that reads an event is where the study goes."""

    node: Node
    prefetch: frozenset[str]
    priors: int
    telemetry: Telemetry

    async def study_settled(self, event: CloudEvent) -> None:
        """Stages what the policy names, and comparable earlier studies: guesses, which push nothing out that
        was asked for and never fail the event.

        Raises:
            Transient: the index or the store is down.
        """
        settled = event.data
        if not isinstance(settled, StudySettled):
            raise TypeError(f"not a study.settled event: {event.type}")
        trace.get_current_span().set_attribute(STUDY_KEY, settled.study_key)
        if self.node.cache.pressed:
            return  # a guess: what was asked for comes first
        here = bool(self.node.cache.find(study_key=settled.study_key))
        if not here and not domain.wanted(settled.modalities, self.prefetch):
            return
        study = await self.node.index.find_study(settled.study_key)
        if study is None or study.version > settled.version:
            return  # destroyed, or a newer version follows
        worth = self.node.cache.ledger.prefetch_worthwhile
        for ref in domain.series_of(study):
            # A series that was here in an older version is in use: its new content is no guess.
            known = bool(self.node.cache.find(series_key=ref.series_key))
            if known or worth:
                await self._guess(ref, Priority.INFERENCE if known else Priority.BULK, event)
        if not worth or not domain.wanted(settled.modalities, self.prefetch):
            return
        for prior in await self.node.priors_of(study, self.priors):
            for ref in domain.series_of(prior):
                await self._guess(ref, Priority.PRIOR, event)

    async def stage_study(self, event: CloudEvent) -> None:
        """Raises Transient: the store or the index is down, or there is no room now. NotFound, TooLarge,
        NotStageable: it never can be.
        """
        command = event.data
        if not isinstance(command, StageStudy):
            raise TypeError(f"not a command to stage: {event.type}")
        trace.get_current_span().set_attribute(STUDY_KEY, command.study_key)
        if self.node.cache.pressed:
            raise Overloaded("this node has more in the making than it should", study_key=command.study_key)
        target = "/".join(filter(None, (command.study_key, command.series_key)))
        refused: NotStageable | None = None
        staged = 0
        for ref in await self.node.resolve(target):
            try:
                await self.node.stage_series(
                    ref, priority=PRIORITIES[command.priority], pin=PINS[command.pin], cause=event
                )
                staged += 1
            except NotStageable as error:
                refused = error
            except Failed as error:
                raise Transient("staging failed a short while ago", study_key=ref.study_key) from error
        if not staged and refused is not None:
            raise refused

    async def unstage_study(self, event: CloudEvent) -> None:
        command = event.data
        if not isinstance(command, UnstageStudy):
            raise TypeError(f"not a command to unstage: {event.type}")
        await self.node.cache.drop(study_key=command.study_key, series_key=command.series_key)

    async def _guess(self, ref: SeriesRef, priority: Priority, event: CloudEvent) -> None:
        """What cannot be staged now is not worth a retry; what depends on an engine that is down, is."""
        try:
            pin = Pin.NONE if priority.demanded else Pin.SOFT
            await self.node.stage_series(ref, priority=priority, pin=pin, cause=event)
        except Overloaded:
            return
        except Transient:
            raise
        except IsocenterError as error:
            self.telemetry.log.debug(LogEvent.STAGING_FAILED, study_key=ref.study_key, error=error)
