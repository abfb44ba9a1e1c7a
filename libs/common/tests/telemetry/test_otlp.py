"""With an endpoint set, spans and metrics reach an OTLP receiver; without, nothing leaves the machine."""

import io
import os
import socket
from typing import Any

import pytest

from isocenter.common.settings import PlatformSettings
from isocenter.common.telemetry import STUDY_KEY, Counter, Gauge, Telemetry, setup

CANARY = "DOE^JANE"


def work(telemetry: Telemetry) -> None:
    telemetry.metrics.add(Counter.INGEST_INSTANCES, protocol="dimse", outcome="stored")
    telemetry.metrics.set(Gauge.READY, 1)
    span = telemetry.tracer.start_as_current_span("store", attributes={STUDY_KEY: "abc", "patient": CANARY})
    with pytest.raises(ValueError), span:
        raise ValueError(CANARY)


def test_spans_and_metrics_of_each_service_arrive(collector: Any) -> None:
    settings = PlatformSettings(otlp_endpoint=collector.url + "/")
    services = [setup(name, settings) for name in ("ingest", "indexer")]

    for telemetry in services:
        work(telemetry)
        telemetry.shutdown()

    assert {("ingest", "store"), ("indexer", "store")} == set(collector.spans)
    assert {"ingest", "indexer"} == collector.metrics.keys()
    assert {Counter.INGEST_INSTANCES.value, Gauge.READY.value} <= collector.metrics["ingest"]


def test_what_is_exported_passed_the_gate(collector: Any) -> None:
    telemetry = setup("ingest", PlatformSettings(otlp_endpoint=collector.url))

    work(telemetry)
    telemetry.shutdown()

    assert collector.bodies
    assert all(CANARY.encode() not in body for body in collector.bodies)


def test_flush_hands_on_what_is_queued(collector: Any) -> None:
    telemetry = setup("ingest", PlatformSettings(otlp_endpoint=collector.url))
    work(telemetry)

    assert telemetry.flush()

    assert [("ingest", "store")] == collector.spans
    telemetry.shutdown()


def test_without_an_endpoint_nothing_is_sent(collector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    telemetry = setup("ingest", PlatformSettings())

    work(telemetry)
    telemetry.shutdown()

    assert [] == collector.bodies


def test_the_standard_variable_sets_the_endpoint(collector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)

    assert collector.url == PlatformSettings.load().otlp_endpoint


def test_an_unreachable_collector_costs_exports_and_nothing_else() -> None:
    """Neither the work nor the stop raises, and the local numbers are right."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        telemetry = setup(
            "ingest",
            PlatformSettings(otlp_endpoint=f"http://127.0.0.1:{placeholder.getsockname()[1]}"),
            stream=io.StringIO(),
        )
        work(telemetry)
        counted = telemetry.metrics.value(Counter.INGEST_INSTANCES)

        telemetry.shutdown()

    assert 1 == counted


def test_each_process_says_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    telemetry = setup("ingest", PlatformSettings())

    attributes = telemetry.tracer_provider.resource.attributes

    assert ("ingest", "isocenter", "staging") == (
        attributes["service.name"],
        attributes["service.namespace"],
        attributes["deployment.environment.name"],
    )
    assert str(attributes["service.instance.id"]).endswith(f":{os.getpid()}")
    assert attributes["service.version"]
    telemetry.shutdown()


def test_an_operator_may_name_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=ingest-7")
    telemetry = setup("ingest", PlatformSettings())

    assert "ingest-7" == telemetry.tracer_provider.resource.attributes["service.instance.id"]
    telemetry.shutdown()
