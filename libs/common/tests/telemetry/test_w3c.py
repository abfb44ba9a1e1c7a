"""Trace context travels as W3C text and never leaks from the caller."""

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace

from isocenter.common.telemetry import (
    context_of,
    current_traceparent,
    noop,
    span_context_of,
    traceparent_of,
)

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_header_becomes_the_parent_of_a_span() -> None:
    tracer = noop().tracer

    span = tracer.start_span("process", context=context_of(HEADER))

    context = span.get_span_context()
    assert "0af7651916cd43dd8448eb211c80319c" == trace.format_trace_id(context.trace_id)
    assert HEADER.split("-")[1] == traceparent_of(context).split("-")[1]


def test_a_span_context_survives_the_header() -> None:
    with noop().tracer.start_as_current_span("publish") as span:
        header = current_traceparent()

    assert header is not None
    assert header == traceparent_of(span.get_span_context())
    back = span_context_of(header)
    assert back is not None
    assert span.get_span_context().trace_id == back.trace_id
    assert span.get_span_context().span_id == back.span_id
    assert back.is_remote


def test_outside_a_span_there_is_no_header() -> None:
    assert None is current_traceparent()
    with pytest.raises(ValueError):
        traceparent_of(trace.INVALID_SPAN_CONTEXT)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        HEADER[:-4],
    ],
)
def test_a_bad_header_starts_a_new_trace_even_inside_a_span(header: str | None) -> None:
    tracer = noop().tracer
    with tracer.start_as_current_span("outer") as outer:
        span = tracer.start_span("process", context=context_of(header))

    assert outer.get_span_context().trace_id != span.get_span_context().trace_id
    assert None is span_context_of(header)


def test_a_publisher_that_does_not_sample_does_not_blind_us(recorded: Callable[..., Any]) -> None:
    out = recorded()

    with out.telemetry.tracer.start_as_current_span("process", context=context_of(HEADER[:-2] + "00")):
        pass

    assert "process" in out.spans
