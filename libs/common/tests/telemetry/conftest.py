"""Telemetry whose output a test can read."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from isocenter.common.telemetry import Telemetry, recording


@dataclass
class Recorded:
    """A service's telemetry and what came out of it."""

    telemetry: Telemetry
    exporter: InMemorySpanExporter
    stream: io.StringIO

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def recorded() -> Callable[..., Recorded]:
    def build(service: str = "test") -> Recorded:
        exporter, stream = InMemorySpanExporter(), io.StringIO()
        return Recorded(recording(service, exporter, stream), exporter, stream)

    return build


@dataclass
class Collector:
    """An OTLP/HTTP receiver on a loopback port."""

    url: str
    spans: list[tuple[str, str]] = field(default_factory=list)
    """(service.name, span name)"""
    metrics: dict[str, set[str]] = field(default_factory=dict)
    """service.name -> metric names"""
    bodies: list[bytes] = field(default_factory=list)
    broken: bool = False


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receive(self.path, body)
            self.send_response(503 if found.broken else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            return

    def receive(path: str, body: bytes) -> None:
        found.bodies.append(body)
        if found.broken:
            return
        if path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(body)
            for resource in traces.resource_spans:
                service = name_of(resource.resource.attributes)
                found.spans += [
                    (service, span.name) for scope in resource.scope_spans for span in scope.spans
                ]
        elif path == "/v1/metrics":
            metrics = ExportMetricsServiceRequest.FromString(body)
            for each in metrics.resource_metrics:
                names = {metric.name for scope in each.scope_metrics for metric in scope.metrics}
                found.metrics.setdefault(name_of(each.resource.attributes), set()).update(names)

    def name_of(attributes: Any) -> str:
        return next(str(each.value.string_value) for each in attributes if each.key == "service.name")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()
