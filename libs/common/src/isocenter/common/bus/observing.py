"""Counts and logs what delivery decided, for one subscription."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from isocenter.common.bus.delivery import Outcome
from isocenter.common.bus.kafka import ConsumerRecord
from isocenter.common.bus.tracing import ERROR_TYPE, OUTCOME
from isocenter.common.events.codec import event_type_of
from isocenter.common.events.models import EVENT_MODELS
from isocenter.common.telemetry import Counter, Histogram, LogEvent, Telemetry

_LINES = {
    Outcome.RETRIED: LogEvent.EVENT_RETRIED,
    Outcome.PARKED: LogEvent.EVENT_PARKED,
    Outcome.DEAD_LETTERED: LogEvent.EVENT_DEAD_LETTERED,
    Outcome.UNKNOWN_TYPE: LogEvent.EVENT_UNKNOWN_TYPE,
    Outcome.NACKED: LogEvent.BUS_UNAVAILABLE,
}


class ClientLog:
    """FastStream's logger. Only its errors pass (a failed commit is one that it swallows), and only by type:
    its texts quote exceptions, and these quote records.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def log(
        self, level: int, msg: Any, /, *, exc_info: Any = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        if level < logging.ERROR:
            return
        where = extra or {}
        self._telemetry.log.error(
            LogEvent.LIBRARY_MESSAGE,
            library="faststream",
            error=type(exc_info) if isinstance(exc_info, BaseException) else "",
            topic=str(where.get("topic", "")),
            group=str(where.get("group_id", "")),
        )


class TelemetryObserver:
    """Labels and fields name topics, groups and error types: never a key or a value of the record."""

    def __init__(self, telemetry: Telemetry, group: str) -> None:
        self._telemetry = telemetry
        self._group = group

    def attempted(self, record: ConsumerRecord, seconds: float, error: str | None) -> None:
        labels = {"topic": record.topic, "group": self._group}
        if error is not None:
            labels["error_type"] = error
        self._telemetry.metrics.record(Histogram.PROCESS, seconds, **labels)

    def finished(self, record: ConsumerRecord, outcome: Outcome, reason: str, error: str) -> None:
        known = event_type_of(record.headers)
        event_type = known if known in EVENT_MODELS else "other"
        self._telemetry.metrics.add(
            Counter.EVENTS_CONSUMED,
            topic=record.topic,
            group=self._group,
            event_type=event_type,
            outcome=outcome.value,
        )
        span = trace.get_current_span()
        span.set_attribute(OUTCOME, outcome.value)
        if error:
            span.set_attribute(ERROR_TYPE, error)
            span.set_status(Status(StatusCode.ERROR))
        if outcome is Outcome.DEAD_LETTERED:
            self._telemetry.metrics.add(
                Counter.DEAD_LETTERS, topic=record.topic, group=self._group, reason=reason
            )
        if (line := _LINES.get(outcome)) is not None:
            self._telemetry.log.warning(
                line,
                topic=record.topic,
                group=self._group,
                partition=record.partition,
                offset=record.offset,
                event_type=event_type,
                reason=reason,
                error=error,
            )

    def halted(self, record: ConsumerRecord, reason: str) -> None:
        self._telemetry.log.error(
            LogEvent.CONSUMER_STOPPED,
            topic=record.topic,
            group=self._group,
            partition=record.partition,
            offset=record.offset,
            reason=reason,
        )
