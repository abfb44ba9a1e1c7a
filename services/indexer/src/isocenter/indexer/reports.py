"""The events that the indexer decides, as outbox entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isocenter.common.clock import Clock
from isocenter.common.events.codec import encode, source_of
from isocenter.common.events.models import CloudEvent, Event, InstanceConflicted, StudyUpdated
from isocenter.common.index.ports import Applied
from isocenter.common.index.records import OutboxEntry

SOURCE = source_of("indexer")


def entry_of(event: CloudEvent, traceparent: str | None) -> OutboxEntry:
    headers, body = encode(event, traceparent)
    return OutboxEntry(
        event_id=event.id,
        topic=event.data.topic,
        key=event.subject,
        headers={name: value.decode() for name, value in headers},
        body=body,
    )


@dataclass(frozen=True, slots=True)
class ArrivalReports:
    """`OutboxBuilder` of one `instances.stored` event: conflicts first, then that the study is out of
    date.
    """

    clock: Clock
    cause: CloudEvent
    traceparent: str | None

    def __call__(self, study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
        now = self.clock.now()
        facts: list[Event] = [
            InstanceConflicted(
                study_key=study_key,
                series_key=conflict.series_key,
                instance_key=conflict.instance_key,
                current_object_key=conflict.current_object_key,
                conflicting_object_key=conflict.conflicting_object_key,
                detected_at=conflict.detected_at,
            )
            for conflict in applied.conflicts
        ]
        version = applied.reopened_version
        if version is not None:
            facts.append(StudyUpdated(study_key=study_key, version=version, updated_at=now))
        return [
            entry_of(
                CloudEvent(
                    id=self.clock.new_id(),
                    source=SOURCE,
                    time=now,
                    data=fact,
                    sequence=version if isinstance(fact, StudyUpdated) else None,
                    correlation_id=self.cause.correlation_id,
                    causation_id=self.cause.id,
                ),
                self.traceparent,
            )
            for fact in facts
        ]


def no_reports(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
    """`OutboxBuilder` of a rebuild: what happened was reported when it happened."""
    return ()
