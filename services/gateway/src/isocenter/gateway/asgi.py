"""From ASGI to handlers and back: one server span, one duration and one status per request.

Paths hold UIDs of patients' studies, so that only route templates reach spans, metrics and logs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from opentelemetry.context import Context as TraceContext
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import IsocenterError, Transient
from isocenter.common.service import ASGIApp
from isocenter.common.telemetry import STUDY_KEY, Counter, Histogram, LogEvent, context_of, span_context_of
from isocenter.gateway.domain import ROOT, BrokenOff, Problem, Reply, Request
from isocenter.gateway.loopback import is_loopback
from isocenter.gateway.ports import Context
from isocenter.gateway.streams import closing

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from isocenter.common.clock import Clock
    from isocenter.common.index.records import StudyRecord
    from isocenter.common.telemetry import Telemetry

Handler = Callable[[Request, Context], Awaitable[Reply]]

KNOWN_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 2
SECURITY_HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),  # addresses hold UIDs
    ("cross-origin-resource-policy", "same-origin"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
)


@dataclass(frozen=True, slots=True)
class Served:
    """What the routes share.

    Attributes:
        public_url: the service root as clients know it; None to build it from each request.
        trace_window: how long after settling a retrieval joins the study's trace.
    """

    context: Context
    telemetry: Telemetry
    public_url: str | None
    trace_window: timedelta


class Endpoint:
    """One route as an ASGI application."""

    def __init__(self, template: str, handler: Handler, served: Served, *, retrieves: bool) -> None:
        self._template = template
        self._handler = handler
        self._served = served
        self._retrieves = retrieves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        telemetry = self._served.telemetry
        started = time.perf_counter()
        request = self._request(scope)
        study = await self._study(request)
        parent, links = trace_of(
            request.headers.get("traceparent"), study, self._served.context.clock, self._served.trace_window
        )
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "_OTHER"
        attributes = {
            "http.request.method": method,
            "http.route": self._template,
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        if study is not None:
            attributes[STUDY_KEY] = study.study_key
        answer = _Answer(receive, send, method)
        with telemetry.tracer.start_as_current_span(
            f"{method} {self._template}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                await self._serve(request, answer, span)
            finally:
                self._account(method, answer, span, time.perf_counter() - started)

    async def _serve(self, request: Request, answer: _Answer, span: Span) -> None:
        try:
            handler = self._handler if answer.allowed else method_not_allowed
            await answer.send(await handler(request, self._served.context))
        except Problem as problem:
            await self._refuse(answer, problem, problem, span)
        except Transient as error:
            detail = "A part of the platform cannot be reached now. Try again."
            retry = (("retry-after", str(RETRY_AFTER_SECONDS)),)
            await self._refuse(answer, Problem(503, error.code, detail, headers=retry), error, span)
        except IsocenterError as error:
            detail = "The stored data could not be read as they were recorded."
            await self._refuse(answer, Problem(500, error.code, detail), error, span)
        except Exception as error:  # noqa: BLE001 - the last line: no text of unknown origin may leave
            await self._refuse(answer, Problem(500, "internal", "This is a defect."), error, span)

    async def _refuse(self, answer: _Answer, problem: Problem, cause: Exception, span: Span) -> None:
        if problem.status >= 500 or answer.started:
            answer.error_type = type(cause).__name__
            span.record_exception(cause)
            self._served.telemetry.log.error(
                LogEvent.REQUEST_FAILED, route=self._template, status=problem.status, error=cause
            )
        if answer.started:
            raise BrokenOff("the answer had begun", status=problem.status) from None
        await answer.send(problem_reply(problem))

    def _request(self, scope: Scope) -> Request:
        http = HttpRequest(scope)
        base = (
            self._served.public_url
            or f"{scope['scheme']}://{_authority(scope, http.headers.get('host', ''))}{ROOT}"
        )
        headers: dict[str, str] = {}
        for name, value in http.headers.items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return Request(base, dict(http.path_params), tuple(http.query_params.multi_items()), headers)

    async def _study(self, request: Request) -> StudyRecord | None:
        """The study of the path, for the trace. The handler reports an index that cannot be reached."""
        if not is_valid_uid(request.path.get("study", "")):
            return None
        with suppress(IsocenterError):
            study = await self._served.context.index.get_study(request.path["study"])
            return study if study is None or self._retrieves else replace(study, traceparent=None)
        return None

    def _account(self, method: str, answer: _Answer, span: Span, seconds: float) -> None:
        telemetry = self._served.telemetry
        span.set_attribute("http.response.status_code", answer.status)
        span.set_attribute("isocenter.response.bytes", answer.sent_bytes)
        labels = {"method": method, "route": self._template, "status_code": str(answer.status)}
        if answer.error_type is not None:
            labels["error_type"] = answer.error_type
            span.set_attribute("error.type", answer.error_type)
            span.set_status(Status(StatusCode.ERROR))
        telemetry.metrics.record(Histogram.HTTP_SERVER, seconds, **labels)
        telemetry.metrics.add(Counter.GATEWAY_BYTES, answer.sent_bytes, route=self._template)
        event = LogEvent.RETRIEVE_ABORTED if answer.abandoned else LogEvent.REQUEST_SERVED
        telemetry.log.debug(  # a viewer asks for a thousand frames: metrics and spans count them
            event,
            route=self._template,
            method=method,
            status=answer.status,
            bytes=answer.sent_bytes,
            seconds=seconds,
        )


def _authority(scope: Scope, host: str) -> str:
    """Host and port as the client wrote them.

    dicomweb-client 0.61 leaves the port out of the Host field; nobody stands between a client and a loopback
    address, so there the port is the server's own.
    """
    name, port = split_host(host)
    server = scope.get("server") or ("localhost", None)
    if not port and server[1] not in {None, 80, 443} and is_loopback(name):
        return f"{name}:{server[1]}"
    return host or server[0]


def split_host(host: str) -> tuple[str, str]:
    """Name and port of a Host field; the port is empty where there is none."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and port.isascii():
        return name, port
    return host, ""


async def method_not_allowed(request: Request, context: Context) -> Reply:
    raise Problem(405, "method-not-allowed", "Only GET and HEAD.", headers=(("allow", "GET, HEAD"),))


def trace_of(
    traceparent: str | None, study: StudyRecord | None, clock: Clock, window: timedelta
) -> tuple[TraceContext, list[Link]]:
    """Parent and links of a request's span (docs/adr/0005).

    A request's own trace wins. Without one it joins the study's trace while the study is being received or
    settled less than `window` ago. Else it is a root. Where the study's trace is not the parent it is linked.
    """
    of_study = span_context_of(study.traceparent) if study is not None else None
    links = [Link(of_study)] if of_study is not None else []
    if span_context_of(traceparent) is not None:
        return context_of(traceparent), links
    if study is not None and of_study is not None:
        last = max(study.settled_at or study.last_received_at, study.last_received_at)
        if clock.now() - last < window:
            return context_of(study.traceparent), []
    return TraceContext(), links


def problem_reply(problem: Problem) -> Reply:
    """RFC 9457."""
    document: dict[str, object] = {
        "type": f"urn:isocenter:problem:{problem.slug}",
        "title": problem.slug.replace("-", " "),
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.parameter is not None:
        document["parameter"] = problem.parameter
    body = json.dumps(document).encode()
    return Reply(problem.status, PROBLEM_JSON, (*problem.headers, ("cache-control", "no-store")), body)


class _Answer:
    """Sends one reply. A body's first piece is made before the status line: its errors get a status."""

    def __init__(self, receive: Receive, send: Send, method: str) -> None:
        self._receive = receive
        self._send = send
        self._head = method == "HEAD"
        self.allowed = method in {"GET", "HEAD"}
        self.started = False
        self.abandoned = False
        self.status = 500
        self.sent_bytes = 0
        self.error_type: str | None = None

    async def send(self, reply: Reply) -> None:
        if isinstance(reply.body, bytes):
            await self._start(reply, len(reply.body))
            await self._piece(b"" if self._head else reply.body, more=False)
            return
        async with closing(reply.body) as pieces:
            first = await anext(pieces, b"")
            await self._start(reply, reply.length)
            if self._head:
                await self._piece(b"", more=False)
                return
            await self._stream(first, pieces)

    async def _stream(self, first: bytes, pieces: AsyncIterator[bytes]) -> None:
        gone = asyncio.create_task(self._disconnected())
        try:
            await self._piece(first, more=True)
            async for piece in pieces:
                if gone.done():
                    self.abandoned = True
                    return
                await self._piece(piece, more=True)
            await self._piece(b"", more=False)
        finally:
            gone.cancel()

    async def _start(self, reply: Reply, length: int | None) -> None:
        headers = [*reply.headers, *SECURITY_HEADERS]
        if reply.media_type is not None:
            headers.append(("content-type", reply.media_type))
        if length is not None and reply.status not in {204, 304}:
            headers.append(("content-length", str(length)))
        self.started = True
        self.status = reply.status
        await self._send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
            }
        )

    async def _piece(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.sent_bytes += len(data)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class HostGuard:
    """Answers 421 to a Host field with a foreign name.

    Without sign-in, a web page could otherwise point its own host name at this address and read with the
    browser of somebody inside (DNS rebinding).
    """

    def __init__(self, application: ASGIApp, hosts: Iterable[str]) -> None:
        self._application = application
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._hosts:
            host = Headers(scope=scope).get("host", "")
            if split_host(host)[0].lower() not in self._hosts:
                detail = "The Host field names a host that is not in ISOCENTER_GATEWAY_ALLOWED_HOSTS."
                await _Answer(receive, send, "GET").send(problem_reply(Problem(421, "misdirected", detail)))
                return
        await self._application(scope, receive, send)
