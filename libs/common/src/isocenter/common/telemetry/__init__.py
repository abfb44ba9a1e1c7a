"""Traces, metrics and logs that operators can trust and that hold no PHI."""

from isocenter.common.telemetry.names import STUDY_KEY, Counter, Gauge, Histogram, LogEvent
from isocenter.common.telemetry.setup import Telemetry, noop, recording, setup
from isocenter.common.telemetry.spans import SpanStore, StoredSpan, read_spans
from isocenter.common.telemetry.w3c import context_of, current_traceparent, span_context_of, traceparent_of

__all__ = [
    "STUDY_KEY",
    "Counter",
    "Gauge",
    "Histogram",
    "LogEvent",
    "SpanStore",
    "StoredSpan",
    "Telemetry",
    "context_of",
    "current_traceparent",
    "noop",
    "read_spans",
    "recording",
    "setup",
    "span_context_of",
    "traceparent_of",
]
