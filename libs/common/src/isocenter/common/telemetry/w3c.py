"""W3C Trace Context: the `traceparent` that travels in event headers and in the index."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def traceparent_of(context: trace.SpanContext) -> str:
    """The header value of a span (Trace Context section 3.2, version 00). Raises ValueError for no span."""
    if not context.is_valid:
        raise ValueError("no valid span context")
    return (
        f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
        f"-{context.trace_flags & 0xFF:02x}"
    )


def current_traceparent() -> str | None:
    """The header value of the span that is current in this task, or None without one."""
    context = trace.get_current_span().get_span_context()
    return traceparent_of(context) if context.is_valid else None


def context_of(traceparent: str | None) -> Context:
    """A context whose current span is the remote one; absent or malformed: an empty one (section 4.3).

    The result never inherits the caller's span.
    """
    return _PROPAGATOR.extract({"traceparent": traceparent} if traceparent else {}, context=Context())


def span_context_of(traceparent: str | None) -> trace.SpanContext | None:
    """The remote span itself, to link to; None where absent or malformed."""
    context = trace.get_current_span(context_of(traceparent)).get_span_context()
    return context if context.is_valid else None
