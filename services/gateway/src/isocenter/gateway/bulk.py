"""WADO-RS: frames and bulk data, by byte ranges of the stored object (PS3.18 section 10.4.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from isocenter.common.dicom import uids
from isocenter.common.dicom.describe import describe
from isocenter.common.dicom.frames import FrameIndex
from isocenter.common.dicom.inflate import PIECE, InflatedReader
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import IntegrityError, InvalidInstance
from isocenter.common.index.records import InstanceRecord
from isocenter.common.objects.vault import VaultReader
from isocenter.gateway import multipart
from isocenter.gateway.bits import aligned
from isocenter.gateway.domain import Headers, Problem, Reply, Request, not_found, parse_frames, target_of
from isocenter.gateway.handlers import NEVER_STORE
from isocenter.gateway.negotiation import (
    OCTET_STREAM,
    choose_bulk,
    choose_frames,
    frame_media_type,
    frame_transfer_syntax,
)
from isocenter.gateway.ports import Context
from isocenter.gateway.retrieve import VARY, held, one_record, open_object, ranged
from isocenter.gateway.streams import closing

PIXEL_DATA = "7FE00010"
_META_PIECE = 32 << 10

Stream = Callable[[int, int], AsyncIterator[bytes]]
"""Bytes [start, end) of the object; of a deflated one, of its header followed by the inflated data set."""


async def retrieve_frames(request: Request, context: Context) -> Reply:
    """Frames as they are stored: native ones by range, encapsulated ones under their own media type."""
    numbers = parse_frames(request.path["frames"])
    record = await one_record(target_of(request.path), context)
    return await _frames(numbers, _frame_index(record), record, request, context)


def _frame_index(record: InstanceRecord) -> FrameIndex:
    if not record.frames:
        raise Problem(404, "no-frames", "The instance has no frames, or none whose boundaries are known.")
    return FrameIndex.unpack(record.frames)


async def _frames(
    numbers: Sequence[int], index: FrameIndex, record: InstanceRecord, request: Request, context: Context
) -> Reply:
    if max(numbers) > index.number_of_frames:
        raise Problem(404, "no-such-frame", f"The instance has {index.number_of_frames} frames.")
    syntax = record.transfer_syntax_uid
    as_multipart = choose_frames(request.accept, syntax, single=len(numbers) == 1)
    if index.inflated and _inflated_bytes(numbers, index) > context.limits.inflated_bytes:
        raise Problem(413, "too-large", "These frames need more inflated bytes than this server gives.")
    reader = await open_object(held(record), context)
    stream = await _stream(reader, record, context)
    kind = f"{frame_media_type(syntax)}; transfer-syntax={frame_transfer_syntax(syntax)}"
    headers = (VARY, NEVER_STORE)
    if not as_multipart:
        body = _frame(stream, index, numbers[0])
        return Reply(200, kind, headers, body, _frame_length(index, numbers[0]))
    base = request.base_url + held(record).target.path

    async def parts() -> AsyncIterator[multipart.Part]:
        for number in numbers:
            part_headers = (("Content-Type", kind), ("Content-Location", f"{base}/frames/{number}"))
            yield multipart.Part(part_headers, _frame(stream, index, number))

    boundary = f"isocenter-{context.clock.new_id()}"
    outer = multipart.content_type(boundary, frame_media_type(syntax))
    return Reply(200, outer, headers, multipart.encode(boundary, parts()))


def _inflated_bytes(numbers: Sequence[int], index: FrameIndex) -> int:
    """What a forward-only reader inflates to give these frames: every step back begins anew."""
    total = position = 0
    for number in numbers:
        start, end = index.ranges(number)[0]
        total += end - position if start >= position else end
        position = end
    return total


def _frame(stream: Stream, index: FrameIndex, number: int) -> AsyncIterator[bytes]:
    pieces = _concatenated(stream, index.ranges(number))
    if index.encapsulated or index.frame_bits % 8 == 0:
        return pieces
    return aligned(pieces, index.bit_offset(number), index.frame_bits)


def _frame_length(index: FrameIndex, number: int) -> int:
    if index.encapsulated:
        return sum(end - start for start, end in index.ranges(number))
    return (index.frame_bits + 7) // 8


async def retrieve_bulk(request: Request, context: Context) -> Reply:
    """The value of one element. Encapsulated Pixel Data is answered frame by frame, in one multipart."""
    path = request.path["bulk"]
    record = await one_record(target_of(request.path), context)
    if path == PIXEL_DATA and record.frames and uids.is_encapsulated(record.transfer_syntax_uid):
        index = FrameIndex.unpack(record.frames)
        return await _frames(range(1, index.number_of_frames + 1), index, record, request, context)
    as_multipart = choose_bulk(request.accept)
    reader = await open_object(held(record), context)
    description = await describe(reader.read, reader.size)
    found = {name: (start, end) for name, start, end in description.bulk}.get(path)
    if found is None:
        raise not_found("bulk value")
    start, end = found
    if description.inflated and end > context.limits.inflated_bytes:
        raise Problem(413, "too-large", "This value needs more inflated bytes than this server gives.")
    stream = await _stream(reader, record, context)
    kind = f"{OCTET_STREAM}; transfer-syntax={frame_transfer_syntax(record.transfer_syntax_uid)}"
    headers: Headers = (VARY, NEVER_STORE)
    if not as_multipart:
        return ranged(
            request,
            kind,
            (*headers, ("accept-ranges", "bytes")),
            end - start,
            lambda first, last: _concatenated(stream, [(start + first, start + last)]),
        )

    async def parts() -> AsyncIterator[multipart.Part]:
        location = f"{request.base_url}{held(record).target.path}/bulkdata/{path}"
        part_headers = (("Content-Type", kind), ("Content-Location", location))
        yield multipart.Part(part_headers, _concatenated(stream, [found]))

    boundary = f"isocenter-{context.clock.new_id()}"
    outer = multipart.content_type(boundary, OCTET_STREAM)
    return Reply(200, outer, headers, multipart.encode(boundary, parts()))


async def _stream(reader: VaultReader, record: InstanceRecord, context: Context) -> Stream:
    if not uids.is_deflated(record.transfer_syntax_uid):
        return reader.stream
    splitter = Part10Splitter()
    position = 0
    while splitter.meta is None and position < reader.size:
        splitter.feed(await reader.read(position, position + _META_PIECE))
        position += _META_PIECE
    if splitter.meta is None:
        raise IntegrityError("the object has no file meta information", object_key=record.object_key)
    inflating = InflatedReader(
        reader.read, splitter.meta.header_bytes, reader.size, limit=context.limits.inflated_bytes
    )

    async def stream(start: int, end: int) -> AsyncIterator[bytes]:
        try:
            for position in range(start, end, PIECE):
                yield await inflating.read(position, min(end, position + PIECE))
        except InvalidInstance as error:
            raise IntegrityError(
                "the data set does not inflate within the limit", object_key=record.object_key
            ) from error

    return stream


async def _concatenated(stream: Stream, ranges: Sequence[tuple[int, int]]) -> AsyncIterator[bytes]:
    """The bytes of the ranges, one after another.

    Raises:
        IntegrityError: a range reaches past the end; the answer is cut, not shortened.
    """
    for start, end in ranges:
        missing = end - start
        async with closing(stream(start, end)) as pieces:
            async for piece in pieces:
                missing -= len(piece)
                yield piece
        if missing:
            raise IntegrityError("a recorded range reaches past the end of the object")
