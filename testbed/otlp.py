"""An OTLP/HTTP receiver in this process: what services export, as plain data."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it was exported."""

    trace_id: str
    span_id: str
    parent_id: str | None
    service: str
    instance: str
    """`service.instance.id`."""
    name: str
    failed: bool
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int | float | bool]


class OtlpSink:
    """Keeps every span, the names of metrics per service, and the raw bodies."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, set[str]] = {}
        self.bodies: list[bytes] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """For `ISOCENTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def of_study(self, study_key: str) -> list[Span]:
        """Every span of the traces that this study is named in."""
        spans = list(self.spans)
        traces = {span.trace_id for span in spans if study_key in span.attributes.values()}
        return [span for span in spans if span.trace_id in traces]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(sink) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sink.receive(self.path, self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
                return

        return Handler

    def receive(self, path: str, body: bytes) -> None:
        self.bodies.append(body)
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = _plain(resource.resource.attributes)
                self.spans += [_span(span, about) for scope in resource.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for each in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                service = str(_plain(each.resource.attributes)["service.name"])
                names = {metric.name for scope in each.scope_metrics for metric in scope.metrics}
                self.metrics.setdefault(service, set()).update(names)


def _span(span: Any, about: dict[str, str | int | float | bool]) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        service=str(about["service.name"]),
        instance=str(about.get("service.instance.id", "")),
        name=span.name,
        failed=span.status.code == 2,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_plain(span.attributes),
    )


def _plain(attributes: Iterable[Any]) -> dict[str, str | int | float | bool]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in attributes
    }
