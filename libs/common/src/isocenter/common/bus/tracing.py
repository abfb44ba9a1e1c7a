"""Spans of messages, in the current semantic conventions (OpenTelemetry 1.44, messaging, Development).

FastStream's own middleware writes names from before 1.25 and the record key; this one writes neither.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from faststream import BaseMiddleware
from faststream.exceptions import NackMessage
from opentelemetry.trace import SpanKind, Status, StatusCode

from isocenter.common.events.codec import TRACEPARENT
from isocenter.common.telemetry import Counter, Histogram, Telemetry, context_of, traceparent_of

if TYPE_CHECKING:
    from faststream._internal.context.repository import ContextRepo
    from faststream.message import StreamMessage

SYSTEM = "messaging.system"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
PARTITION = "messaging.destination.partition.id"
OFFSET = "messaging.kafka.offset"
GROUP = "messaging.consumer.group.name"
EVENT_ID = "cloudevents.event_id"
EVENT_TYPE = "cloudevents.event_type"
ERROR_TYPE = "error.type"
OUTCOME = "isocenter.delivery.outcome"


class TracingMiddleware:
    """A `process` span around each delivery and a `send` span around each publication."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def __call__(self, msg: Any, /, *, context: ContextRepo) -> BaseMiddleware[Any, Any]:
        return _Tracing(msg, context=context, telemetry=self._telemetry)


class _Tracing(BaseMiddleware[Any, Any]):
    def __init__(self, msg: Any, /, *, context: ContextRepo, telemetry: Telemetry) -> None:
        super().__init__(msg, context=context)
        self._telemetry = telemetry

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[Any]) -> Any:
        record = msg.raw_message
        attributes = {
            SYSTEM: "kafka",
            OPERATION: "process",
            OPERATION_TYPE: "process",
            DESTINATION: record.topic,
            PARTITION: str(record.partition),
            OFFSET: record.offset,
            GROUP: getattr(self.context.get_local("handler_"), "group_id", None) or "",
        }
        with self._telemetry.tracer.start_as_current_span(
            f"process {record.topic}",
            context=context_of(msg.headers.get(TRACEPARENT)),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            # AckMessage is how a record that was moved is acknowledged: no error of this span.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                return await call_next(msg)
            except NackMessage:
                span.set_status(Status(StatusCode.ERROR))
                raise

    async def publish_scope(self, call_next: Callable[[Any], Awaitable[Any]], cmd: Any) -> Any:
        topic = cmd.destination
        event_type = cmd.headers.get("ce_type", "")
        labels = {"topic": topic}
        started = time.perf_counter()
        with self._telemetry.tracer.start_as_current_span(
            f"send {topic}",
            kind=SpanKind.PRODUCER,
            attributes={SYSTEM: "kafka", OPERATION: "send", OPERATION_TYPE: "send", DESTINATION: topic},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            cmd.headers = {**cmd.headers, TRACEPARENT: traceparent_of(span.get_span_context())}
            try:
                return await call_next(cmd)
            except Exception as error:
                labels["error_type"] = type(error).__name__
                span.set_attribute(ERROR_TYPE, type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise
            finally:
                metrics = self._telemetry.metrics
                metrics.record(Histogram.PUBLISH, time.perf_counter() - started, **labels)
                if event_type.startswith("org.isocenter."):
                    labels["event_type"] = event_type
                metrics.add(Counter.EVENTS_SENT, **labels)
