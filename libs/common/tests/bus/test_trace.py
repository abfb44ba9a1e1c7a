"""One trace from the sender through every service, whatever detour an event takes; no key in any span."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from isocenter.common.errors import InvalidInstance, RejectReason, StoreUnavailable
from isocenter.common.events.models import CloudEvent, TransferClosed
from isocenter.common.telemetry import STUDY_KEY, Telemetry, current_traceparent, recording

Until = Callable[..., Awaitable[None]]
GROUPS = ("one.h", "two.h")


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def telemetry(spans: InMemorySpanExporter) -> Iterator[Telemetry]:
    made = recording("one", spans)
    yield made
    made.shutdown()


async def test_one_trace_over_two_services(
    backend: Any, make: Any, until: Until, telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    first, second = await backend.topic(1, GROUPS), await backend.topic(1, GROUPS)
    one, two, done = backend.bus("one", telemetry), backend.bus("two", telemetry), list[str]()

    async def forward(event: CloudEvent) -> None:
        await one.publish_entry(make.entry(second, 0, "b", {"traceparent": current_traceparent() or ""}))

    async def finish(event: CloudEvent) -> None:
        done.append(event.id)

    one.subscribe("h", first, {TransferClosed: forward})
    two.subscribe("h", second, {TransferClosed: finish})
    await one.start()
    await two.start()
    with telemetry.tracer.start_as_current_span("association") as root:
        await one.publish_entry(make.entry(first, 0, "a"))
    await until(lambda: done and len(spans.get_finished_spans()) == 5)

    found = {span.name: span for span in spans.get_finished_spans()}
    chain = ["association", f"send {first}", f"process {first}", f"send {second}", f"process {second}"]
    assert set(chain) == set(found)
    for parent, child in itertools.pairwise(chain):
        assert found[child].parent is not None
        assert found[parent].context.span_id == found[child].parent.span_id  # type: ignore[union-attr]  # asserted
    assert {root.get_span_context().trace_id} == {span.context.trace_id for span in found.values()}


async def test_the_trace_goes_on_over_the_retry_topic(
    backend: Any, make: Any, until: Until, telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    topic, bus, tried = await backend.topic(1, GROUPS), backend.bus("one", telemetry), list[str]()

    async def handle(event: CloudEvent) -> None:
        tried.append(event.id)
        if len(tried) < 4:
            raise StoreUnavailable

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    with telemetry.tracer.start_as_current_span("association") as root:
        await bus.publish_entry(make.entry(topic, 0, "a"))
    retried = f"process {topic}.one.h.retry"
    await until(lambda: any(span.name == retried for span in spans.get_finished_spans()))

    assert {root.get_span_context().trace_id} == {s.context.trace_id for s in spans.get_finished_spans()}


async def test_a_stored_entry_joins_the_trace_it_was_decided_in(
    backend: Any, make: Any, until: Until, telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    """Not the trace of the relay that happens to publish it."""
    topic, bus = await backend.topic(), backend.bus("one", telemetry)
    await bus.start()
    with telemetry.tracer.start_as_current_span("decided") as decided:
        traceparent = current_traceparent() or ""

    with telemetry.tracer.start_as_current_span("relay"):
        await bus.publish_entry(make.entry(topic, 0, "a", {"traceparent": traceparent}))

    [sent] = [span for span in spans.get_finished_spans() if span.name == f"send {topic}"]
    assert decided.get_span_context().trace_id == sent.context.trace_id


async def test_spans_have_current_names_and_no_key(
    backend: Any, make: Any, until: Until, telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    topic, bus, done = await backend.topic(1, GROUPS), backend.bus("one", telemetry), list[CloudEvent]()

    async def handle(event: CloudEvent) -> None:
        done.append(event)

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: len(spans.get_finished_spans()) == 2)

    found = {span.name: span for span in spans.get_finished_spans()}
    process, send = found[f"process {topic}"], found[f"send {topic}"]
    assert (SpanKind.CONSUMER, SpanKind.PRODUCER) == (process.kind, send.kind)
    assert {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.consumer.group.name": "one.h",
        "cloudevents.event_id": done[0].id,
        "cloudevents.event_type": done[0].type,
        "isocenter.delivery.outcome": "ok",
        STUDY_KEY: make.study(0),
    } == dict(process.attributes or {})


async def test_a_handler_error_leaves_its_type_and_nothing_of_its_text(
    embedded: Any, make: Any, until: Until, telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    topic, bus = await embedded.topic(), embedded.bus("one", telemetry)

    async def handle(event: CloudEvent) -> None:
        raise InvalidInstance(RejectReason.MALFORMED, "DOE^JANE") from ValueError("DOE^JANE")

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic, 0, "a"))
    name = f"process {topic}"
    await until(lambda: any(span.name == name for span in spans.get_finished_spans()))

    [process] = [span for span in spans.get_finished_spans() if span.name == name]
    assert "InvalidInstance" == (process.attributes or {})["error.type"]
    assert () == tuple(process.events)
    assert all("DOE" not in span.to_json() for span in spans.get_finished_spans())
