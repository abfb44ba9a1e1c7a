"""Reads spans from a store that speaks Jaeger's query API, bounded in time, size and number of requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import httpx

from isocenter.common.errors import Transient
from isocenter.common.telemetry import STUDY_KEY, StoredSpan
from isocenter.common.telemetry.redact import safe_text

SECONDS = 15.0
"""For everything that one study takes."""
MAX_SERVICES = 100
"""A store is often shared with other systems: each of its services is asked, and that many at the most."""
MAX_TRACES = 50
"""Of one service; stores answer with the newest first."""
MAX_SPANS = 20_000
MAX_BYTES = 64 << 20
"""Of one answer."""
AT_ONCE = 4
EARLIER = timedelta(hours=1)
"""Clocks differ, and a trace begins before its first instance is stored."""


class TraceStoreUnavailable(Transient):
    """The trace store does not answer, or answers something else."""

    code = "trace-store-unavailable"


async def read_traces(
    base_url: str,
    study_key: str,
    *,
    since: datetime,
    until: datetime,
    seconds: float = SECONDS,
) -> list[StoredSpan]:
    """Every span of every trace that touched the study, in order of start; cut at `MAX_SPANS`.

    Args:
        base_url: below it are `/api/services` and `/api/traces`.
        study_key: traces are found by the attribute of their spans that names it.
        since: traces that began more than `EARLIER` before are not asked for.
        until: nor those that began later.
        seconds: for all of it.

    Raises:
        TraceStoreUnavailable: the message names the cause, never what the store answered.
    """
    window = {"start": _micros(since - EARLIER), "end": _micros(until)}
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(
                base_url=base_url.rstrip("/"), timeout=seconds, follow_redirects=False
            ) as client,
        ):
            found = await _asked(client, study_key, window)
    except TimeoutError:
        raise TraceStoreUnavailable(f"no answer within {seconds:g} s") from None
    except httpx.InvalidURL:
        raise TraceStoreUnavailable("its address is no URL") from None
    except httpx.HTTPError as error:
        raise TraceStoreUnavailable(f"it cannot be reached: {type(error).__name__}") from None
    spans = sorted(found.values(), key=lambda span: (span.start_ns, span.end_ns))
    return spans[:MAX_SPANS]


async def _asked(
    client: httpx.AsyncClient, study_key: str, window: Mapping[str, str]
) -> dict[tuple[str, str], StoredSpan]:
    services = await _data(client, "/api/services", {})
    names = sorted({name for name in services if isinstance(name, str)})[:MAX_SERVICES]
    # Raw: Jaeger would move spans that begin after the end of their parent, as those of a consumer do.
    query = {"tags": json.dumps({STUDY_KEY: study_key}), "limit": str(MAX_TRACES), "raw": "true", **window}
    slots = asyncio.Semaphore(AT_ONCE)
    found: dict[tuple[str, str], StoredSpan] = {}

    async def ask(service: str) -> None:
        async with slots:
            for trace in await _data(client, "/api/traces", {"service": service, **query}):
                found.update(((span.trace_id, span.span_id), span) for span in _spans(trace))

    try:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(ask(name))
    except* (TraceStoreUnavailable, httpx.HTTPError) as several:
        raise several.exceptions[0] from None
    return found


async def _data(client: httpx.AsyncClient, path: str, query: Mapping[str, str]) -> list[Any]:
    """The `data` of an answer; empty where the store has none."""
    async with client.stream("GET", path, params=query) as answer:
        if answer.status_code != httpx.codes.OK:
            raise TraceStoreUnavailable(f"{path} answered {answer.status_code}: is it Jaeger's query API?")
        body = bytearray()
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > MAX_BYTES:
                raise TraceStoreUnavailable(f"{path} answered more than {MAX_BYTES >> 20} MiB")
    try:
        data = json.loads(body)["data"]
    except (ValueError, KeyError, TypeError):
        raise TraceStoreUnavailable(f"{path} did not answer as Jaeger's query API does") from None
    return data if isinstance(data, list) else []


def _spans(trace: Any) -> Iterator[StoredSpan]:
    """The spans of one trace of an answer.

    Raises:
        TraceStoreUnavailable: it is not of the form that Jaeger documents.
    """
    try:
        services = {name: str(process["serviceName"]) for name, process in trace["processes"].items()}
        for span in trace["spans"]:
            yield _span(span, services)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TraceStoreUnavailable("a trace is not of the form of Jaeger's query API") from None


def _span(span: Mapping[str, Any], services: Mapping[str, str]) -> StoredSpan:
    trace_id = str(span["traceID"]).zfill(32)
    attributes = {str(tag["key"]): _value(tag) for tag in span["tags"] or ()}
    parent, links = _references(span.get("references") or (), trace_id)
    start_ns = int(span["startTime"]) * 1000
    kind = str(attributes.pop("span.kind", "internal"))
    status = str(attributes.pop("otel.status_code", "unset")).lower()
    if attributes.pop("error", False) in {True, "true"}:
        status = "error"
    return StoredSpan(
        trace_id=trace_id,
        span_id=str(span["spanID"]).zfill(16),
        parent_id=parent,
        service=services[span["processID"]],
        name=safe_text(str(span["operationName"])),
        kind=kind,
        status=status,
        start_ns=start_ns,
        end_ns=start_ns + int(span["duration"]) * 1000,
        attributes={name: value for name, value in attributes.items() if not name.startswith(_STORES_OWN)},
        links=links,
    )


_STORES_OWN = ("otel.", "internal.", "w3c.")
"""Attributes that the way of a span into the store adds."""


def _references(references: Any, trace_id: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The parent, and what the span links to. A parent is the first CHILD_OF of the same trace."""
    parent: str | None = None
    links: list[tuple[str, str]] = []
    for reference in references:
        place = str(reference["traceID"]).zfill(32), str(reference["spanID"]).zfill(16)
        if parent is None and reference["refType"] == "CHILD_OF" and place[0] == trace_id:
            parent = place[1]
        else:
            links.append(place)
    return parent, tuple(links)


def _value(tag: Mapping[str, Any]) -> Any:
    """As the span had it; the API gives 64-bit numbers as numbers, or as text."""
    value = tag["value"]
    if tag.get("type") == "int64":
        return int(value)
    return safe_text(value) if isinstance(value, str) else value


def _micros(moment: datetime) -> str:
    return str(int(moment.timestamp() * 1_000_000))
