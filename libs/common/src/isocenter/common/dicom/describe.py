"""What the index and the readers need to know of an instance, from one pass over its header."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from isocenter.common.dicom import metadata
from isocenter.common.dicom.frames import FRAGMENT_TAIL, FrameIndex, index_frames, needs_fragment_tails
from isocenter.common.dicom.header import InstanceHeader
from isocenter.common.dicom.inflate import InflatedReader, Read
from isocenter.common.dicom.part10 import FileMeta, Part10Splitter
from isocenter.common.dicom.uids import is_deflated, is_valid_uid
from isocenter.common.dicom.walk import DescribeLimits, Request, Walk
from isocenter.common.errors import InvalidInstance, RejectReason

DEFAULT_LIMITS: Final = DescribeLimits()

BEGINNING: Final = 32 << 10
"""File meta information and the first step of the walk: with these bytes most headers are done."""
_META_PIECE: Final = 64 << 10
# Parsing this much takes about a millisecond; less than a trip to a thread and back is worth.
_INLINE_BYTES: Final = 16 << 10
_TAIL_READ: Final = 256 << 10
_WANTED: Final = {
    "sop_class_uid": "00080016",
    "sop_instance_uid": "00080018",
    "study_instance_uid": "0020000D",
    "series_instance_uid": "0020000E",
}


@dataclass(frozen=True, slots=True)
class InstanceDescription:
    """One instance as its bytes describe it. Holds PHI.

    Attributes:
        attributes: top-level elements as DICOM JSON, without bulk data and without sequences above 64 KiB.
        metadata: the whole data set for `metadata.decode`, bulk values as relative BulkDataURIs.
        bulk: (path, start, end) of every BulkDataURI `bulkdata/<path>`. Offsets count in the Part 10 object;
            for a deflated one (`inflated`) in its header followed by the inflated data set.
        frames: None without pixel data, or where frame boundaries cannot be known.
        header_bytes: length of preamble and file meta information.
        complete: False if the data set could not be walked to its end; what was readable is here all the
        same.
        inflated: the transfer syntax is deflated.
    """

    header: InstanceHeader
    transfer_syntax_uid: str
    attributes: dict[str, Any]
    metadata: bytes
    bulk: tuple[tuple[str, int, int], ...]
    frames: FrameIndex | None
    header_bytes: int
    complete: bool
    inflated: bool


Plan = Generator[Request, bytes, InstanceDescription]


async def describe(
    read: Read, size: int, *, limits: DescribeLimits = DEFAULT_LIMITS, inline: bool = False
) -> InstanceDescription:
    """Describes the Part 10 object that `read` reads, fetching its header and no pixel data.

    Native pixel data is skipped. Of encapsulated pixel data the item headers are read, piece by piece. A
    deflated data set is inflated in pieces, to its end. Anything longer than 16 KiB is parsed in a thread.

    Args:
        read: plaintext bytes [start, end), cut at the object's end.
        size: plaintext size of the object.
        limits: what is too much.
        inline: parse on the caller's thread whatever the length.

    Raises:
        InvalidInstance: NOT_DICOM, or MISSING_UID / INVALID_UID where ingest would have refused it too;
        TOO_LARGE
            or MALFORMED for a deflated data set before its UIDs. Never because of a value or a truncation
            after them.
        What `read` raises.
    """
    beginning = await read(0, min(size, BEGINNING))
    meta = await _read_meta(read, size, beginning)
    deflated = is_deflated(meta.transfer_syntax_uid)
    if deflated:
        reader = InflatedReader(read, meta.header_bytes, size, limit=limits.inflated_bytes)
        read = reader.read
    plan = plan_description(meta, None if deflated else size, limits)
    step = _step(plan, None)
    while isinstance(step, Request):
        try:
            if step.end <= len(beginning) and not deflated:
                data = beginning[step.start : step.end]
            else:
                data = await read(step.start, step.end)
        except InvalidInstance:
            data = b""  # as if the bytes ended here: what came before is described
        step = _step(plan, data) if inline or len(data) <= _INLINE_BYTES else await _aside(plan, data)
    return step


def describe_bytes(data: bytes, *, limits: DescribeLimits = DEFAULT_LIMITS) -> InstanceDescription:
    """`describe` for a Part 10 object in memory, whose data set is not deflated; blocking, for threads and
    tools.

    Raises:
        InvalidInstance: as `describe` does.
    """
    splitter = Part10Splitter()
    splitter.feed(data)
    splitter.finish()
    if splitter.meta is None or is_deflated(splitter.meta.transfer_syntax_uid):
        raise InvalidInstance(
            RejectReason.TRANSFER_SYNTAX_UNSUPPORTED, "describe deflated data sets in pieces"
        )
    plan = plan_description(splitter.meta, len(data), limits)
    step = _step(plan, None)
    while isinstance(step, Request):
        step = _step(plan, data[step.start : step.end])
    return step


def plan_description(meta: FileMeta, size: int | None, limits: DescribeLimits) -> Plan:
    """Sans I/O: yields what it wants to read, is sent the bytes, and returns the description."""
    walk = Walk(meta.transfer_syntax_uid, meta.header_bytes, size, limits)
    yield from walk.steps()
    header = _header(walk.document)
    inflated = is_deflated(meta.transfer_syntax_uid)
    frames = None
    if walk.pixel is not None:
        tails: list[bytes] = []
        if needs_fragment_tails(walk.document, walk.pixel):
            tails = yield from _fragment_tails(walk)
        frames = index_frames(walk.document, walk.pixel, inflated=inflated, tails=tails)
    return InstanceDescription(
        header=header,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        attributes={
            name: element
            for name, element in walk.document.items()
            if "BulkDataURI" not in element and name not in walk.large
        },
        metadata=metadata.encode(walk.document),
        bulk=tuple(walk.bulk),
        frames=frames,
        header_bytes=meta.header_bytes,
        complete=walk.complete,
        inflated=inflated,
    )


def _fragment_tails(walk: Walk) -> Generator[Request, bytes, list[bytes]]:
    tails: list[bytes] = []
    window, base = b"", 0
    if walk.pixel is None:
        return tails
    for start, length in zip(walk.pixel.starts, walk.pixel.lengths, strict=True):
        end = start + length
        begin = max(start, end - FRAGMENT_TAIL)
        if not base <= begin <= end <= base + len(window):
            base = begin
            window = yield Request(begin, end if length > _TAIL_READ else begin + _TAIL_READ)
        tails.append(window[begin - base : end - base])
    return tails


def _header(document: dict[str, Any]) -> InstanceHeader:
    uids: dict[str, str] = {}
    for field, name in _WANTED.items():
        values = document.get(name, {}).get("Value")
        uid = values[0] if values and len(values) == 1 else None
        if not isinstance(uid, str):
            raise InvalidInstance(RejectReason.MISSING_UID, f"{field} is absent")
        if not is_valid_uid(uid):
            raise InvalidInstance(RejectReason.INVALID_UID, f"{field} is no UID")
        uids[field] = uid
    return InstanceHeader(**uids)


async def _read_meta(read: Read, size: int, beginning: bytes) -> FileMeta:
    splitter = Part10Splitter()
    splitter.feed(beginning)
    for start in range(len(beginning), size, _META_PIECE):
        if splitter.meta is not None:
            return splitter.meta
        splitter.feed(await read(start, min(size, start + _META_PIECE)))
    splitter.finish()
    if splitter.meta is None:
        raise InvalidInstance(RejectReason.NOT_DICOM)
    return splitter.meta


def _step(plan: Plan, data: bytes | None) -> Request | InstanceDescription:
    # A StopIteration cannot leave a thread's future, so it is caught on this side.
    try:
        return next(plan) if data is None else plan.send(data)
    except StopIteration as stop:
        description: InstanceDescription = stop.value
        return description


async def _aside(plan: Plan, data: bytes) -> Request | InstanceDescription:
    return await asyncio.to_thread(_step, plan, data)
