"""Lookup tables: of palette colour (PS3.3 sections C.7.6.3.1.5 and C.7.9) and of the modality (C.11.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from isocenter.common.index.records import DicomJson
from isocenter.gpu_stager.manifest import Palette
from isocenter.gpu_stager.pixels import attributes as a
from isocenter.gpu_stager.pixels.facts import NotStageable

Value = Callable[[DicomJson, str], Awaitable[bytes | None]]
"""Reads a binary element of a document, which may be too long to stand in it."""

_COLOURS: Final = (
    ("00281101", "00281201", "00281221"),
    ("00281102", "00281202", "00281222"),
    ("00281103", "00281203", "00281223"),
)
"""Descriptor, data and segmented data of red, green and blue."""


async def palette(document: DicomJson, value: Value) -> Palette:
    """Raises NotStageable: pixels are indices into tables that are not there, or are no tables."""
    tables: list[tuple[int, ...]] = []
    first: tuple[int, int, int] | None = None
    for descriptor_tag, data_tag, segmented_tag in _COLOURS:
        descriptor = a.numbers(document, descriptor_tag, 3)
        if not descriptor:
            raise NotStageable("palette-unsupported")
        entries, start, bits = int(descriptor[0]) or 65536, int(descriptor[1]), int(descriptor[2])
        first = first or (entries, start, bits)
        if (data := await value(document, data_tag)) is not None:
            table = _words(data) if len(data) >= 2 * entries else tuple(data)
        elif (data := await value(document, segmented_tag)) is not None:
            table = expanded(_words(data) if bits > 8 or len(data) % 2 == 0 else tuple(data))
        else:
            table = ()
        if len(table) < entries:
            raise NotStageable("palette-unsupported")
        tables.append(table[:entries])
    if first is None:
        raise NotStageable("palette-unsupported")
    return Palette(first, *tables)


async def modality(document: DicomJson, value: Value) -> dict[str, Any] | None:
    """The first item of the Modality LUT Sequence; None where there is none, or rescaling is a line."""
    item = a.item(document, "00283000")
    descriptor = a.numbers(item, "00283002", 3)
    if not descriptor:
        return None
    data: Sequence[float] = a.numbers(item, "00283006")
    if not data:
        raw = await value(item, "00283006")
        data = _words(raw) if raw else ()
    return {"descriptor": [int(each) for each in descriptor], "data": [int(each) for each in data]}


def expanded(segments: Sequence[int]) -> tuple[int, ...]:
    """Of segmented data: discrete, linear and indirect segments (PS3.3 section C.7.9.2).

    Raises:
        NotStageable: they are none.
    """
    table: list[int] = []
    try:
        _expand(segments, 0, len(segments), table, indirect=True)
    except (IndexError, ZeroDivisionError):
        raise NotStageable("palette-unsupported") from None
    return tuple(table)


def _expand(segments: Sequence[int], position: int, stop: int, table: list[int], *, indirect: bool) -> int:
    while position < stop:
        kind, length = segments[position], segments[position + 1]
        if kind == 0:
            table += segments[position + 2 : position + 2 + length]
            position += 2 + length
        elif kind == 1:
            before, last = table[-1], segments[position + 2]
            table += [round(before + (last - before) * step / length) for step in range(1, length + 1)]
            position += 3
        elif kind == 2 and indirect:
            # `length` segments are repeated from an offset in bytes that counts from the beginning.
            offset = segments[position + 2] + (segments[position + 3] << 16)
            _repeat(segments, offset // 2, length, table)
            position += 4
        else:
            raise IndexError
        if len(table) > 1 << 16:
            raise IndexError
    return position


def _repeat(segments: Sequence[int], position: int, count: int, table: list[int]) -> None:
    for _ in range(count):
        end = position + (2 + segments[position + 1] if segments[position] == 0 else 3)
        position = _expand(segments, position, end, table, indirect=False)


def _words(data: bytes) -> tuple[int, ...]:
    """Sixteen bits each, little endian: native big endian values were turned when the metadata was read."""
    return tuple(memoryview(data[: len(data) // 2 * 2]).cast("H"))
