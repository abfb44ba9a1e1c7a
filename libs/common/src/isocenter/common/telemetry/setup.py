"""Builds the telemetry of one service.

Nothing here is global: in embedded mode several services share a process, and each keeps its own tracer
provider, meter provider and log under its own `service.name`.
"""

from __future__ import annotations

import io
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol, TextIO

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

from isocenter.common.clock import Clock
from isocenter.common.telemetry.log import Log, LogFormat, LogLevel
from isocenter.common.telemetry.metrics import Metrics
from isocenter.common.telemetry.sanitise import SanitisingProcessor
from isocenter.common.telemetry.spans import SpanStore

# A 3,000-slice study makes one burst of 4,000 spans and more; the SDK's default of 2,048 loses the rest
# silently. A span in the queue takes about 2 KB.
SPAN_QUEUE = 32_768
SPAN_BATCH = 1_024
LOCAL_DELAY_MS = 500  # so that `isocenter trace` shows what has just happened
OTLP_DELAY_MS = 2_000
OTLP_TIMEOUT_S = 3  # an unreachable collector holds up a stop for this long
METRIC_INTERVAL_MS = 15_000


class TelemetrySettings(Protocol):
    """What telemetry reads of the platform's settings."""

    @property
    def otlp_endpoint(self) -> str | None: ...
    @property
    def log_format(self) -> LogFormat: ...
    @property
    def log_level(self) -> str: ...


@dataclass(frozen=True)
class Telemetry:
    """A service's tracer, metrics and log."""

    service: str
    tracer: Tracer
    tracer_provider: TracerProvider
    metrics: Metrics
    log: Log

    def flush(self, timeout_millis: int = 5_000) -> bool:
        """Hands on what is queued. Blocks: call it in a thread from async code."""
        return self.tracer_provider.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Exports what is queued, bounded in time, and stops the export threads. Blocks likewise."""
        with ThreadPoolExecutor(2) as both:
            both.submit(self.tracer_provider.shutdown)
            both.submit(self.metrics.shutdown)


def setup(
    service: str,
    settings: TelemetrySettings,
    spans: SpanStore | None = None,
    *,
    clock: Clock | None = None,
    stream: TextIO | None = None,
) -> Telemetry:
    """Telemetry that keeps spans in `spans`, and exports over OTLP/HTTP if the settings name an endpoint."""
    processors: list[SpanProcessor] = []
    readers: list[MetricReader] = []
    if spans is not None:
        processors.append(_batched(spans.exporter(), LOCAL_DELAY_MS))
    if settings.otlp_endpoint:
        base = settings.otlp_endpoint.rstrip("/")
        trace_exporter = OTLPSpanExporter(endpoint=f"{base}/v1/traces", timeout=OTLP_TIMEOUT_S)
        metric_exporter = OTLPMetricExporter(endpoint=f"{base}/v1/metrics", timeout=OTLP_TIMEOUT_S)
        processors.append(_batched(trace_exporter, OTLP_DELAY_MS))
        readers.append(PeriodicExportingMetricReader(metric_exporter, METRIC_INTERVAL_MS))
    log = Log(
        service,
        stream=stream,
        style=settings.log_format,
        level=LogLevel[settings.log_level.upper()],
        clock=clock,
    )
    return _build(service, processors, readers, log)


def noop(service: str = "test") -> Telemetry:
    """For unit tests: real spans and metrics that go nowhere, and a log that raises for unlisted fields."""
    return _build(service, [], [], Log(service, stream=io.StringIO(), level=LogLevel.DEBUG, strict=True))


def recording(service: str, exporter: SpanExporter, stream: TextIO | None = None) -> Telemetry:
    """For tests that look at spans: each finished span goes through the gate to `exporter` at once."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415 - tests only

    log = Log(service, stream=stream or io.StringIO(), level=LogLevel.DEBUG, strict=True)
    return _build(service, [SimpleSpanProcessor(exporter)], [], log)


def _build(service: str, processors: list[SpanProcessor], readers: list[MetricReader], log: Log) -> Telemetry:
    resource = _resource(service)
    # ALWAYS_ON: a foreign publisher's "not sampled" flag must not blind `isocenter trace`.
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    if processors:
        provider.add_span_processor(SanitisingProcessor(processors))
    return Telemetry(
        service=service,
        tracer=provider.get_tracer("isocenter"),
        tracer_provider=provider,
        metrics=Metrics(service, resource, readers),
        log=log,
    )


def _resource(service: str) -> Resource:
    """Who speaks. `OTEL_RESOURCE_ATTRIBUTES` adds to it (`deployment.environment.name=...`) and may name the
    instance; by itself it is the host, which in a cluster is the pod, and the process.
    """
    given = OTELResourceDetector().detect().attributes
    return Resource.create(
        {
            "service.name": service,
            "service.namespace": "isocenter",
            "service.version": metadata.version("isocenter-common"),
            "service.instance.id": given.get("service.instance.id")
            or f"{socket.gethostname()}:{os.getpid()}",
        }
    )


def _batched(exporter: SpanExporter, delay_ms: int) -> BatchSpanProcessor:
    return BatchSpanProcessor(
        exporter,
        max_queue_size=SPAN_QUEUE,
        schedule_delay_millis=delay_ms,
        max_export_batch_size=SPAN_BATCH,
    )
