"""`isocenter trace` on a real trace store: what the platform exports over OTLP is what the command shows."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from tests.flows.helpers import isocenter, isocenter_json

from isocenter.cli.tracestore import read_traces
from isocenter.common.clock import SystemClock
from isocenter.common.telemetry import STUDY_KEY

if TYPE_CHECKING:
    from testbed.traces import Collector, TraceStore
    from tests.observability.conftest import Traced

SECONDS = 30.0


def _shape(spans: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Everything the waterfall is drawn from. The store keeps microseconds."""
    return {
        (span["trace_id"], span["span_id"]): (
            span["parent_id"],
            span["service"],
            span["name"],
            span["kind"],
            span["status"],
            span["start_ns"] // 1000,
            sorted(map(tuple, span["links"])),
            span["attributes"],
        )
        for span in spans
    }


@pytest.mark.slow
async def test_the_waterfall_from_the_store_is_the_one_kept_locally(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, trace_store: TraceStore
) -> None:
    study, data_dir = traced.study, traced.data_dir
    monkeypatch.delenv("ISOCENTER_TRACE_STORE_URL", raising=False)
    kept = isocenter_json("trace", study, data_dir=data_dir)
    local = _shape(kept["spans"])
    await _await_spans(trace_store, kept["study_key"], len(local))
    monkeypatch.setenv("ISOCENTER_TRACE_STORE_URL", trace_store.query)

    stored = _shape(isocenter_json("trace", study, data_dir=data_dir)["spans"])

    assert len(local) > 6
    assert {"ingest", "indexer"} <= {span[1] for span in stored.values()}
    assert local == stored
    text = isocenter("trace", study, data_dir=data_dir).stdout
    assert "association" in text
    assert "settle study" in text


def test_a_store_that_is_not_there_costs_the_spans_and_not_the_events(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOCENTER_TRACE_STORE_URL", "http://127.0.0.1:9")

    done = isocenter("trace", traced.study, data_dir=traced.data_dir, expect=3)

    assert "study.settled" in done.stdout
    assert "no spans from the trace store" in done.stderr


async def test_kinds_failures_links_and_numbers_come_back_as_they_were(trace_store: TraceStore) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "another system"}))
    exporter = OTLPSpanExporter(endpoint=f"{trace_store.otlp}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("elsewhere") as elsewhere:
        linked = elsewhere.get_span_context()
    with tracer.start_as_current_span(
        "failing", kind=SpanKind.CLIENT, attributes={STUDY_KEY: "kkkk", "isocenter.size_bytes": 1 << 40}
    ) as span:
        span.add_link(linked)
        span.set_status(Status(StatusCode.ERROR))
    await asyncio.to_thread(provider.shutdown)

    found = await _await_spans(trace_store, "kkkk", 1)

    (one,) = found
    assert ("another system", "failing", "client", "error") == (one.service, one.name, one.kind, one.status)
    assert ((f"{linked.trace_id:032x}", f"{linked.span_id:016x}"),) == one.links
    assert 1 << 40 == one.attributes["isocenter.size_bytes"]
    assert one.parent_id is None


async def test_a_study_nobody_traced_has_no_spans(trace_store: TraceStore) -> None:
    now = SystemClock().now()

    assert [] == await read_traces(trace_store.query, "unknown", since=now, until=now)


async def test_what_lies_outside_the_time_is_not_asked_for(trace_store: TraceStore) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "ingest"}))
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{trace_store.otlp}/v1/traces"))
    )
    old = datetime(2026, 1, 1, tzinfo=UTC)
    nanoseconds = int(old.timestamp() * 1e9)
    span = provider.get_tracer("test").start_span(
        "old", attributes={STUDY_KEY: "oldstudy"}, start_time=nanoseconds
    )
    span.end(nanoseconds + 1_000_000)
    await asyncio.to_thread(provider.shutdown)

    inside = await read_traces(
        trace_store.query, "oldstudy", since=old - timedelta(days=1), until=old + timedelta(days=1)
    )
    outside = await read_traces(
        trace_store.query, "oldstudy", since=old + timedelta(days=1), until=old + timedelta(days=2)
    )

    assert (["old"], []) == ([each.name for each in inside], [each.name for each in outside])


def test_the_collectors_configuration_is_valid(collector: Collector) -> None:
    assert not collector.check()


async def test_the_collector_takes_out_what_services_never_send(
    collector: Collector, trace_store: TraceStore
) -> None:
    """A net for other systems that share the collector."""
    provider = TracerProvider(resource=Resource({"service.name": "foreign"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{collector.otlp}/v1/traces")))
    attributes = {
        STUDY_KEY: "foreignstudy",
        "messaging.kafka.message.key": "1.2.3.4.5",
        "url.query": "PatientName=DOE^JANE",
        "patient.name": "DOE^JANE",
        "PatientSpeaks": "kept: only the exact words are denied",
        "messaging.destination.name": "imaging.instance.v1",
    }
    with provider.get_tracer("test").start_as_current_span("process", attributes=attributes):
        pass
    await asyncio.to_thread(provider.shutdown)

    (span,) = await _await_spans(trace_store, "foreignstudy", 1)

    assert {STUDY_KEY, "PatientSpeaks", "messaging.destination.name"} == set(span.attributes)
    assert "DOE^JANE" not in json.dumps(dict(span.attributes))


async def _await_spans(store: TraceStore, study_key: str, count: int) -> list[Any]:
    """Reading follows writing in the store by a moment."""
    now = SystemClock().now()
    async with asyncio.timeout(SECONDS):
        while True:
            found = await read_traces(
                store.query,
                study_key,
                since=now - timedelta(minutes=5),
                until=now + timedelta(minutes=5),
            )
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)
