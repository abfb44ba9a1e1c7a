"""Which frames of a series make which stack, and in which order. Pure: nothing is read or decoded here.

Frames belong together that have the same shape, type, photometric meaning and, where they have planes, the
same orientation. Where every place along the normal holds the same number of frames (time points, echoes,
diffusion weightings), each of them is a volume of its own.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

import numpy as np

from isocenter.common.index.manifest import ManifestEntry, SeriesManifest
from isocenter.gpu_stager.layout.spec import LAYOUT_VERSION, ArraySpec
from isocenter.gpu_stager.manifest import Geometry, Rescale, Source, Tiles
from isocenter.gpu_stager.pixels import attributes as a
from isocenter.gpu_stager.pixels import geometry
from isocenter.gpu_stager.pixels.decoding import decoded_dtype, decoded_photometric, is_lossy, require_decoder
from isocenter.gpu_stager.pixels.facts import (
    WHOLE_SLIDE,
    FrameFacts,
    NotStageable,
    PixelFacts,
    frame_facts,
    pixel_facts,
)
from isocenter.gpu_stager.pixels.slide import Tile, slide_tiles

MAX_VOLUMES: Final = 4096
"""In one series."""


@dataclass(frozen=True, slots=True)
class PlannedFrame:
    """A frame and where it is: index of its source, and what is known of it."""

    source: int
    facts: FrameFacts
    tile: Tile | None = None


@dataclass(frozen=True, slots=True)
class PlannedStack:
    """Frames in order: everything of a `Stack` but its bytes."""

    spec: ArraySpec
    pixels: PixelFacts
    frames: tuple[PlannedFrame, ...]
    geometry: Geometry
    photometric_interpretation: str
    lossy: bool
    tiles: Tiles | None = None

    @property
    def rescale(self) -> Rescale:
        pairs = [(frame.facts.slope, frame.facts.intercept) for frame in self.frames]
        if len(set(pairs)) == 1:
            pairs = pairs[:1]
        units = {frame.facts.units for frame in self.frames}
        slope, intercept = zip(*pairs, strict=True)
        return Rescale(slope, intercept, units.pop() if len(units) == 1 else None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a series becomes.

    Attributes:
        entries: the instances that are used; `PlannedFrame.source` counts in them.
        left_out: instance key -> why.
    """

    name: str
    study_key: str
    series_key: str
    content: str
    modality: str
    entries: tuple[ManifestEntry, ...]
    stacks: tuple[PlannedStack, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of the data files, known before anything is fetched."""
        return sum(stack.spec.file_bytes for stack in self.stacks)

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(
            Source(one.instance_key, one.object_key, one.content_digest, one.transfer_syntax_uid)
            for one in self.entries
        )


def content_of(series: SeriesManifest) -> str:
    """SHA-256 over what decides the bytes: sources in order, and the layout."""
    digest = hashlib.sha256(f"isocenter/staged/{LAYOUT_VERSION}\n".encode())
    for entry in series.instances:
        digest.update(f"{entry.instance_key} {entry.content_digest} {entry.transfer_syntax_uid}\n".encode())
    return digest.hexdigest()


def name_of(series: SeriesManifest) -> str:
    return f"{series.series_key}-{content_of(series)[:16]}"


def plan_series(series: SeriesManifest) -> Plan:
    """Raises NotStageable: no instance has pixels that make an array."""
    left_out: dict[str, str] = {}
    used: list[ManifestEntry] = []
    alike: defaultdict[tuple[object, ...], list[tuple[PixelFacts, PlannedFrame]]] = defaultdict(list)
    for entry in series.instances:
        try:
            for key, pixels, frame in _frames(entry, len(used)):
                alike[key].append((pixels, frame))
        except NotStageable as error:
            left_out[entry.instance_key] = error.reason
        else:
            used.append(entry)
    if not used:
        raise NotStageable(_commonest(left_out.values()), series_key=series.series_key)
    stacks: list[PlannedStack] = []
    for group in alike.values():
        pixels = group[0][0]
        stacks += _stacks(pixels, [frame for _, frame in group], used)
    if len(stacks) > MAX_VOLUMES:
        raise NotStageable("too-many-volumes", series_key=series.series_key)
    stacks.sort(key=lambda stack: -stack.spec.volume_bytes)  # the volume that is meant comes first; stable
    return Plan(
        name=name_of(series),
        study_key=series.study_key,
        series_key=series.series_key,
        content=content_of(series),
        modality=a.text(used[0].metadata, "00080060"),
        entries=tuple(used),
        stacks=_levels(stacks),
        left_out=left_out,
    )


def _commonest(reasons: Iterable[str]) -> str:
    found = sorted(reasons)
    return max(found, key=found.count) if found else "no-instances"


def _frames(
    entry: ManifestEntry, source: int
) -> Iterable[tuple[tuple[object, ...], PixelFacts, PlannedFrame]]:
    """Raises NotStageable before the first frame."""
    pixels = pixel_facts(entry)
    require_decoder(entry.transfer_syntax_uid, pixels)
    frames = pixels.number_of_frames
    if not entry.frames:
        raise NotStageable("frame-boundaries-unknown", instance_key=entry.instance_key)
    alike = (
        pixels.rows,
        pixels.columns,
        pixels.samples_per_pixel,
        decoded_dtype(pixels),
        decoded_photometric(entry.transfer_syntax_uid, pixels),
        pixels.bits_stored,
        is_lossy(entry),
    )
    facts = frame_facts(entry, frames)
    if entry.sop_class_uid == WHOLE_SLIDE:
        tiles = slide_tiles(entry, pixels)
        matrix = (tiles.rows, tiles.columns)
        return [
            ((*alike, *matrix), pixels, PlannedFrame(source, fact, tile))
            for fact, tile in zip(facts, tiles.tiles, strict=True)
        ]
    return [((*alike, geometry.has_plane(fact)), pixels, PlannedFrame(source, fact)) for fact in facts]


def _stacks(
    pixels: PixelFacts, frames: list[PlannedFrame], used: Sequence[ManifestEntry]
) -> Iterator[PlannedStack]:
    if frames[0].tile is not None:
        yield _stack(pixels, sorted(frames, key=_by_tile), used)
    elif geometry.has_plane(frames[0].facts):
        for alike in _by_direction(frames):
            for volume in _volumes(alike):
                yield _stack(pixels, volume, used)
    else:
        yield _stack(pixels, frames, used)


def _by_direction(frames: list[PlannedFrame]) -> list[list[PlannedFrame]]:
    """Frames of one orientation together: scanners write its last digits differently from slice to slice."""
    found: list[tuple[tuple[float, ...], list[PlannedFrame]]] = []
    for frame in frames:
        orientation = frame.facts.orientation or ()
        for known, alike in found:
            if geometry.parallel(known, orientation):
                alike.append(frame)
                break
        else:
            found.append((orientation, [frame]))
    return [alike for _, alike in found]


def _by_tile(frame: PlannedFrame) -> tuple[int, ...]:
    tile = frame.tile
    if tile is None:
        return ()
    return (tile.optical_path, tile.focal_plane, tile.row, tile.column)


def _volumes(frames: list[PlannedFrame]) -> Iterable[list[PlannedFrame]]:
    """One list for each volume, its frames along the normal. Ties keep the order of the series."""
    direction = geometry.normal(frames[0].facts.orientation or ())
    ordered = sorted(frames, key=lambda frame: geometry.distance(frame.facts, direction))
    places: list[list[PlannedFrame]] = [ordered[:1]]
    for before, frame in pairwise(ordered):
        step = geometry.distance(frame.facts, direction) - geometry.distance(before.facts, direction)
        if step > geometry.SAME_PLACE:
            places.append([frame])
        else:
            places[-1].append(frame)
    position = {id(frame): index for index, frame in enumerate(frames)}
    for place in places:
        place.sort(key=lambda frame: position[id(frame)])
    repeats = {len(place) for place in places}
    if repeats == {1} or len(repeats) > 1:
        # Uneven repeats are no volumes: told as duplicates.
        return [[frame for place in places for frame in place]]
    return [[place[turn] for place in places] for turn in range(repeats.pop())]


def _stack(pixels: PixelFacts, frames: Sequence[PlannedFrame], used: Sequence[ManifestEntry]) -> PlannedStack:
    entry = used[frames[0].source]
    shape: tuple[int, ...] = (len(frames), pixels.rows, pixels.columns)
    if pixels.samples_per_pixel > 1:
        shape += (pixels.samples_per_pixel,)
    facts = [frame.facts for frame in frames]
    sources = {frame.source for frame in frames}
    if frames[0].tile is None and geometry.has_plane(facts[0]):
        where = geometry.of_planes(facts)
    else:
        where = geometry.without_planes(facts, "frame-number" if len(sources) == 1 else "instance-number")
    tiles = None
    if frames[0].tile is not None:
        matrix = slide_tiles(entry, pixels)
        found = [frame.tile for frame in frames if frame.tile is not None]
        tiles = Tiles(
            level=0,
            rows=matrix.rows,
            columns=matrix.columns,
            row=tuple(tile.row for tile in found),
            column=tuple(tile.column for tile in found),
            spacing=facts[0].spacing,
            optical_path=tuple(tile.optical_path for tile in found),
            focal_plane=tuple(tile.focal_plane for tile in found),
        )
    return PlannedStack(
        spec=ArraySpec(shape, decoded_dtype(pixels)),
        pixels=pixels,
        frames=tuple(frames),
        geometry=where,
        photometric_interpretation=decoded_photometric(entry.transfer_syntax_uid, pixels),
        lossy=any(is_lossy(used[source]) for source in sources),
        tiles=tiles,
    )


def _levels(stacks: Sequence[PlannedStack]) -> tuple[PlannedStack, ...]:
    """Pyramid levels of a slide by the size of their matrix: the largest is 0."""
    matrices = sorted(
        {(one.tiles.rows, one.tiles.columns) for one in stacks if one.tiles is not None},
        key=np.prod,
        reverse=True,
    )
    return tuple(
        stack
        if stack.tiles is None
        else replace(
            stack,
            tiles=replace(stack.tiles, level=matrices.index((stack.tiles.rows, stack.tiles.columns))),
        )
        for stack in stacks
    )
