"""WADO-RS: whole instances and metadata (PS3.18 section 10.4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Any

from isocenter.common.dicom.metadata import decode
from isocenter.common.errors import IntegrityError, NotFound
from isocenter.common.index import manifest
from isocenter.common.index.records import InstanceRecord, SettleState
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import VaultReader
from isocenter.gateway import multipart
from isocenter.gateway.domain import (
    Headers,
    Problem,
    Reply,
    Request,
    Target,
    not_acceptable,
    not_found,
    target_of,
)
from isocenter.gateway.handlers import NEVER_STORE, stream_documents, warning
from isocenter.gateway.negotiation import DICOM, choose_document, choose_instances
from isocenter.gateway.ports import Context
from isocenter.gateway.ranges import parse_range
from isocenter.gateway.streams import closing

DECODE_OFF_LOOP_BYTES = 64 << 10
"""Compressed metadata from this size on takes longer to decode than the hop to a thread."""
REVALIDATE = ("cache-control", "private, no-cache")
VARY = ("vary", "accept")


@dataclass(frozen=True, slots=True)
class Held:
    """One stored instance, without its metadata: light enough to list a study of 100,000."""

    target: Target
    study_key: str
    instance_key: str
    object_key: str
    size: int
    transfer_syntax_uid: str
    content_digest: str
    received_at: datetime


def held(record: InstanceRecord) -> Held:
    return Held(
        Target(record.study_instance_uid, record.series_instance_uid, record.sop_instance_uid),
        record.study_key,
        record.instance_key,
        record.object_key,
        record.size_bytes,
        record.transfer_syntax_uid,
        record.content_digest,
        record.received_at,
    )


def records(target: Target, context: Context) -> AsyncIterator[InstanceRecord]:
    assert target.study is not None  # noqa: S101 - every retrieve route names a study
    return context.index.instances(target.study, target.series, target.instance)


async def one_record(target: Target, context: Context) -> InstanceRecord:
    async with closing(records(target, context)) as found:
        async for record in found:
            return record
    raise not_found("instance")


async def open_object(item: Held, context: Context) -> VaultReader:
    """Opens the object that the index names.

    Raises:
        IntegrityError: the store does not have it, or not in the recorded length: bytes were lost.
    """
    try:
        reader = await context.vault.reader(item.object_key, SealContext(item.study_key, item.instance_key))
    except NotFound as error:
        raise IntegrityError(
            "the object of an indexed instance is missing", object_key=item.object_key
        ) from error
    if reader.size != item.size:
        raise IntegrityError("the object of an instance has another length", object_key=item.object_key)
    return reader


async def retrieve(request: Request, context: Context) -> Reply:
    """Study, series or instance as stored."""
    target = target_of(request.path)
    packaging = choose_instances(request.accept, single=target.instance is not None)
    found = [held(record) async for record in records(target, context)]
    if not found:
        raise not_found(target.what)
    items = [item for item in found if packaging.takes(item.transfer_syntax_uid)]
    if not items:
        syntaxes = ", ".join(sorted({item.transfer_syntax_uid for item in found}))
        raise not_acceptable(
            f"Held in transfer syntax {syntaxes}. This release does not transcode;"
            " transfer-syntax=* takes what is held."
        )
    if not packaging.multipart:
        return await _single(items[0], request, context)
    headers: Headers = (VARY, NEVER_STORE)
    if target.instance is not None:
        headers = (VARY, REVALIDATE, *_validators(items[0], weak=True))
        if _unchanged(request, items[0]):
            return Reply(304, headers=headers)
    left_out = len(found) - len(items)
    if left_out:
        text = f"{left_out} instances are held in other transfer syntaxes and are not part of this response"
        headers += (("warning", warning(request, text)),)
    boundary = f"isocenter-{context.clock.new_id()}"
    body = multipart.encode(boundary, _parts(items, request, context))
    return Reply(206 if left_out else 200, multipart.content_type(boundary, DICOM), headers, body)


async def _parts(items: list[Held], request: Request, context: Context) -> AsyncIterator[multipart.Part]:
    for item in items:
        reader = await open_object(item, context)
        headers = (
            ("Content-Type", f"{DICOM}; transfer-syntax={item.transfer_syntax_uid}"),
            ("Content-Location", request.base_url + item.target.path),
        )
        yield multipart.Part(headers, reader.stream())


async def _single(item: Held, request: Request, context: Context) -> Reply:
    """One instance as application/dicom, with byte ranges and validators."""
    headers: Headers = (VARY, REVALIDATE, ("accept-ranges", "bytes"), *_validators(item, weak=False))
    if _unchanged(request, item):
        return Reply(304, headers=headers)
    reader = await open_object(item, context)
    kind = f"{DICOM}; transfer-syntax={item.transfer_syntax_uid}"
    return ranged(request, kind, headers, item.size, reader.stream, etag=_etag(item))


def ranged(
    request: Request,
    media_type: str,
    headers: Headers,
    size: int,
    stream: Callable[[int, int], AsyncIterator[bytes]],
    *,
    etag: str | None = None,
) -> Reply:
    """A single-part body, whole or the byte range asked for. `stream(start, end)` gives its bytes."""
    condition = request.headers.get("if-range")
    wanted = None if condition is not None and condition != etag else request.headers.get("range")
    part = parse_range(wanted, size)
    if part is None:
        return Reply(200, media_type, headers, stream(0, size), size)
    start, end = part
    headers += (("content-range", f"bytes {start}-{end - 1}/{size}"),)
    return Reply(206, media_type, headers, stream(start, end), end - start)


def _etag(item: Held) -> str:
    return f'"{item.content_digest}"'


def _validators(item: Held, *, weak: bool) -> Headers:
    """Weak for multipart, whose boundary changes with every response."""
    etag = f"W/{_etag(item)}" if weak else _etag(item)
    return ("etag", etag), ("last-modified", format_datetime(item.received_at, usegmt=True))


def _unchanged(request: Request, item: Held) -> bool:
    """Weak comparison of If-None-Match (RFC 9110 section 13.1.2)."""
    field = request.headers.get("if-none-match")
    if field is None:
        return False
    return field.strip() == "*" or _etag(item) in (tag.strip().removeprefix("W/") for tag in field.split(","))


async def retrieve_metadata(request: Request, context: Context) -> Reply:
    """Every attribute of every instance; bulk values as absolute BulkDataURI."""
    target = target_of(request.path)
    document = choose_document(request.accept)
    return stream_documents(document, _metadata(target, request, context), context, (VARY, NEVER_STORE))


async def _metadata(target: Target, request: Request, context: Context) -> AsyncIterator[Mapping[str, Any]]:
    nothing = True
    async with closing(_documents(target, context)) as found:
        async for each, document in found:
            nothing = False
            yield with_absolute_uris(document, request.base_url + each.path)
    if nothing:
        raise not_found(target.what)


async def _documents(target: Target, context: Context) -> AsyncIterator[tuple[Target, Mapping[str, Any]]]:
    """Series of a settled study come from their manifests, one object each; all else from the index."""
    assert target.study is not None  # noqa: S101 - every retrieve route names a study
    if target.instance is None:
        study = await context.index.get_study(target.study)
        settled = study if study is not None and study.state is SettleState.SETTLED else None
        for series in await context.index.list_series(target.study):
            if target.series in {None, series.series_instance_uid}:
                each = Target(target.study, series.series_instance_uid)
                key = settled.manifests.get(series.series_key) if settled is not None else None
                study_key = settled.study_key if settled is not None else ""
                async with closing(_series(each, study_key, key, context)) as documents:
                    async for found in documents:
                        yield found
        return
    async with closing(_rows(target, context)) as documents:
        async for found in documents:
            yield found


async def _series(
    target: Target, study_key: str, manifest_key: str | None, context: Context
) -> AsyncIterator[tuple[Target, Mapping[str, Any]]]:
    plaintext = None
    if manifest_key is not None:
        with suppress(NotFound):  # the index says the same, row by row
            plaintext = await context.vault.get(manifest_key, SealContext(study_key, manifest_key))
    if plaintext is None:
        async with closing(_rows(target, context)) as rows:
            async for found in rows:
                yield found
        return
    entries = manifest.entries(plaintext)
    # One entry is at most as large as one header, which may be tens of megabytes: never decoded on the loop.
    while (entry := await asyncio.to_thread(next, entries, None)) is not None:
        yield Target(target.study, target.series, entry["sop_instance_uid"]), entry["metadata"]


async def _rows(target: Target, context: Context) -> AsyncIterator[tuple[Target, Mapping[str, Any]]]:
    async with closing(records(target, context)) as found:
        async for record in found:
            large = len(record.metadata) > DECODE_OFF_LOOP_BYTES
            document = await asyncio.to_thread(decode, record.metadata) if large else decode(record.metadata)
            yield held(record).target, document


def with_absolute_uris(document: Mapping[str, Any], base: str) -> dict[str, Any]:
    """BulkDataURI values are stored relative to their instance, because the server's address may change."""
    return {tag: _element(element, base) for tag, element in sorted(document.items())}


def _element(element: Mapping[str, Any], base: str) -> dict[str, Any]:
    if "BulkDataURI" in element:
        return {**element, "BulkDataURI": f"{base}/{element['BulkDataURI']}"}
    if element.get("vr") == "SQ" and "Value" in element:
        return {**element, "Value": [with_absolute_uris(item or {}, base) for item in element["Value"]]}
    return dict(element)


async def not_in_this_release(request: Request, context: Context) -> Reply:
    """Rendered resources and thumbnails: 404, the status of a resource that this server does not have."""
    raise Problem(
        404,
        "not-in-this-release",
        "Rendered resources and thumbnails are not part of this release. Retrieve frames instead.",
    )
