"""WADO-RS: frames and bulk data, by byte ranges of the stored object (PS3.18 section 10.4.1.1.4 to 10.4.1.1.6)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from isocenter.common.dicom import uids
from isocenter.common.dicom.describe import describe
from isocenter.common.dicom.frames import FrameIndex
from isocenter.common.errors import IntegrityError
from isocenter.common.index.records import InstanceRecord
from isocenter.gateway import multipart
from isocenter.gateway.domain import (
    Headers,
    Problem,
    Reply,
    Request,
    not_acceptable,
    not_found,
    parse_frames,
    target_of,
)
from isocenter.gateway.handlers import NEVER_STORE
from isocenter.gateway.inflating import InflatedReader
from isocenter.gateway.negotiation import (
    OCTET_STREAM,
    choose_bulk,
    choose_frames,
    frame_media_type,
    frame_transfer_syntax,
)
from isocenter.gateway.ports import Context
from isocenter.gateway.retrieve import VARY, held, one_record, open_object, ranged

PIXEL_DATA = "7FE00010"

Stream = Callable[[int, int], AsyncIterator[bytes]]
"""Bytes [start, end) of the object, or of its inflated data set where that is what offsets count in."""


async def retrieve_frames(request: Request, context: Context) -> Reply:
    """Frames as they are stored: native ones by range, encapsulated ones under their own media type."""
    target = target_of(request.path)
    numbers = parse_frames(request.path["frames"])
    record = await one_record(target, context)
    index = _frame_index(record)
    if max(numbers) > index.number_of_frames:
        raise Problem(404, "no-such-frame", f"The instance has {index.number_of_frames} frames.")
    syntax = record.transfer_syntax_uid
    if choose_frames(request.accept, syntax, single=len(numbers) == 1):
        return await _multipart_frames(numbers, index, record, request, context)
    stream = await _stream(record, context)
    kind = f"{frame_media_type(syntax)}; transfer-syntax={frame_transfer_syntax(syntax)}"
    body = _concatenated(stream, index.ranges(numbers[0]))
    return Reply(200, kind, (VARY, NEVER_STORE), body, _length(index.ranges(numbers[0])))


def _frame_index(record: InstanceRecord) -> FrameIndex:
    if not record.frames:
        raise Problem(404, "no-pixel-data", "The instance has no frames that can be addressed.")
    return FrameIndex.unpack(record.frames)


async def _multipart_frames(
    numbers: Sequence[int], index: FrameIndex, record: InstanceRecord, request: Request, context: Context
) -> Reply:
    syntax = record.transfer_syntax_uid
    media_type, frame_syntax = frame_media_type(syntax), frame_transfer_syntax(syntax)
    base = request.base_url + held(record).target.path
    stream = await _stream(record, context)

    async def parts() -> AsyncIterator[multipart.Part]:
        for number in numbers:
            headers = (
                ("Content-Type", f"{media_type}; transfer-syntax={frame_syntax}"),
                ("Content-Location", f"{base}/frames/{number}"),
            )
            yield multipart.Part(headers, _concatenated(stream, index.ranges(number)))

    boundary = f"isocenter-{context.clock.new_id()}"
    kind = multipart.content_type(boundary, media_type)
    return Reply(200, kind, (VARY, NEVER_STORE), multipart.encode(boundary, parts()))


async def _stream(record: InstanceRecord, context: Context) -> Stream:
    reader = await open_object(held(record), context)
    if not uids.is_deflated(record.transfer_syntax_uid):
        return reader.stream
    raise NotImplementedError


async def _concatenated(stream: Stream, ranges: Sequence[tuple[int, int]]) -> AsyncIterator[bytes]:
    """The bytes of the ranges, one after another.

    Raises:
        IntegrityError: a range reaches past the end; the answer is cut, not shortened.
    """
    for start, end in ranges:
        missing = end - start
        async for piece in stream(start, end):
            missing -= len(piece)
            yield piece
        if missing:
            raise IntegrityError("a recorded range reaches past the end of the object")


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)
