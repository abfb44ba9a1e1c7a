"""QIDO-RS: searching for studies, series and instances (PS3.18 section 10.6)."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from isocenter.common.index.query import MOST_COUNTED, Level, Match
from isocenter.gateway import multipart, native_xml
from isocenter.gateway.attributes import INSTANCE_AVAILABILITY, RETRIEVE_URL, SPECIFIC_CHARACTER_SET
from isocenter.gateway.domain import Headers, Reply, Request, Target, target_of
from isocenter.gateway.negotiation import DICOM_XML, Document, choose_document
from isocenter.gateway.ports import Context
from isocenter.gateway.search import Search, parse_search
from isocenter.gateway.streams import closing

NEVER_STORE = ("cache-control", "no-store")


async def search_studies(request: Request, context: Context) -> Reply:
    return await _search(Level.STUDY, request, context)


async def search_series(request: Request, context: Context) -> Reply:
    return await _search(Level.SERIES, request, context)


async def search_instances(request: Request, context: Context) -> Reply:
    return await _search(Level.INSTANCE, request, context)


async def _search(level: Level, request: Request, context: Context) -> Reply:
    document = choose_document(request.accept)
    search = parse_search(
        level,
        target_of(request.path),
        request.query,
        default_limit=context.limits.default_results,
        max_limit=context.limits.max_results,
    )
    matches, remaining = await _page(search, context)
    warnings = list(search.warnings)
    if remaining:
        least = "at least " if remaining >= MOST_COUNTED else ""
        warnings.append(f"There are {least}{remaining} additional results that can be requested")
    headers = (NEVER_STORE, *(("warning", warning(request, text)) for text in warnings))
    if not matches:
        return Reply(204, headers=headers)
    return documents(document, [_result(match, search, request) for match in matches], context, headers)


async def _page(search: Search, context: Context) -> tuple[tuple[Match, ...], int]:
    """`limit=0` asks only how many there are."""
    if search.query.limit:
        page = await context.index.search(search.query)
        return page.matches, page.remaining
    page = await context.index.search(replace(search.query, limit=1))
    return (), len(page.matches) + page.remaining


def warning(request: Request, text: str) -> str:
    """Warning field value in the form that PS3.18 section 8.3.4 gives."""
    return f"299 {request.base_url}: {text}"


def _result(match: Match, search: Search, request: Request) -> dict[str, Any]:
    """One result: attributes asked for, in order of tag, with what only the origin server knows."""
    target = Target(match.study_instance_uid, match.series_instance_uid, match.sop_instance_uid)
    attributes: dict[str, Any] = {
        **match.attributes,
        SPECIFIC_CHARACTER_SET: {"vr": "CS", "Value": ["ISO_IR 192"]},
        INSTANCE_AVAILABILITY: {"vr": "CS", "Value": ["ONLINE"]},
        RETRIEVE_URL: {"vr": "UR", "Value": [request.base_url + target.path]},
    }
    return {
        tag: attributes[tag] for tag in sorted(attributes) if search.fields is None or tag in search.fields
    }


def to_json(document: object) -> bytes:
    """JSON in UTF-8; numbers that JSON does not have become strings (PS3.18 section F.2.2)."""
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def documents(document: Document, results: list[dict[str, Any]], context: Context, headers: Headers) -> Reply:
    """Results that are in memory already."""

    async def each() -> AsyncIterator[Mapping[str, Any]]:
        for result in results:
            yield result

    if document is Document.XML:
        return stream_documents(document, each(), context, headers)
    return Reply(200, document.value, headers, to_json(results))


def stream_documents(
    document: Document, results: AsyncIterator[Mapping[str, Any]], context: Context, headers: Headers
) -> Reply:
    """Results one by one: a JSON array, or one part of XML each."""
    if document is Document.XML:
        boundary = f"isocenter-{context.clock.new_id()}"
        kind = multipart.content_type(boundary, DICOM_XML)
        return Reply(200, kind, headers, multipart.encode(boundary, _xml_parts(results)))
    return Reply(200, document.value, headers, _json_array(results))


async def _xml_parts(results: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[multipart.Part]:
    async with closing(results) as each:
        async for result in each:
            body = multipart.once(native_xml.to_xml(result))
            yield multipart.Part((("Content-Type", DICOM_XML),), body)


async def _json_array(results: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    lead = b"["
    async with closing(results) as each:
        async for result in each:
            yield lead + to_json(result)
            lead = b","
    yield b"]" if lead == b"," else b"[]"
