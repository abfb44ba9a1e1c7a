"""The gate every finished span passes before any exporter sees it.

Instrumentation libraries write record keys, URLs and exception texts into spans; all of these can hold
patient data. Attributes pass by name, exceptions keep their type only, and texts lose what looks like the UID
of a patient's object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import Link, Status
from opentelemetry.util.types import AttributeValue

from isocenter.common.errors import IsocenterError
from isocenter.common.telemetry.redact import safe_text

ALLOWED_PREFIXES = (
    "cloudevents.",
    "code.",
    "error.",
    "isocenter.",
    "messaging.",
    "network.",
    "server.",
    "thread.",
)
ALLOWED = frozenset(
    {"exception.escaped", "exception.type", "http.request.method", "http.response.status_code", "http.route"}
)
DENIED = frozenset(
    {
        "messaging.kafka.message.key",  # foreign writers put StudyInstanceUID there
        "messaging.message.body",
        "messaging.kafka.message.headers",
    }
)


class SanitisingProcessor(SpanProcessor):
    """Hands clean copies of finished spans to the processors behind it."""

    def __init__(self, behind: Sequence[SpanProcessor]) -> None:
        self._behind = tuple(behind)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        return None

    def on_end(self, span: ReadableSpan) -> None:
        clean = sanitised(span)
        for processor in self._behind:
            processor.on_end(clean)

    def shutdown(self) -> None:
        for processor in self._behind:
            processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        flushed = [processor.force_flush(timeout_millis) for processor in self._behind]
        return all(flushed)


def sanitised(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=safe_text(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_attributes(span.attributes),
        events=[_event(event) for event in span.events],
        links=[Link(link.context, _attributes(link.attributes)) for link in span.links],
        kind=span.kind,
        status=_status(span),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _attributes(attributes: Mapping[str, AttributeValue] | None) -> dict[str, AttributeValue]:
    return {
        name: _value(value)
        for name, value in (attributes or {}).items()
        if name not in DENIED and (name in ALLOWED or name.startswith(ALLOWED_PREFIXES))
    }


def _value(value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, bytes):
        return len(value)  # bytes are payload: their length is all that may be known
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Sequence):
        return [safe_text(item) if isinstance(item, str) else item for item in value]
    return ""


def _event(event: Event) -> Event:
    attributes = _attributes(event.attributes)
    given = event.attributes or {}
    # The stack trace goes in any case: it repeats the texts of chained exceptions, which may be a library's.
    if given.get("exception.type") in _own_errors():
        attributes["exception.message"] = safe_text(str(given.get("exception.message", "")))
    return Event(safe_text(event.name), attributes, event.timestamp)


def _status(span: ReadableSpan) -> Status:
    """Keeps the code; keeps the description only of our own errors, else the exception's type."""
    status = span.status
    if status.description is None:
        return status
    kinds = [str((event.attributes or {}).get("exception.type", "")) for event in span.events]
    last = next((kind for kind in reversed(kinds) if kind), None)
    if last is None:
        return Status(status.status_code)
    # The SDK writes "<class>: <text>"; a description of any other form was set by somebody else.
    if last in _own_errors() and status.description.startswith(f"{last.rpartition('.')[2]}: "):
        return Status(status.status_code, safe_text(status.description))
    return Status(status.status_code, safe_text(last))


def _own_errors() -> frozenset[str]:
    return frozenset(f"{kind.__module__}.{kind.__qualname__}" for kind in _subclasses(IsocenterError))


def _subclasses(kind: type[IsocenterError]) -> Iterator[type[IsocenterError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _subclasses(child)
