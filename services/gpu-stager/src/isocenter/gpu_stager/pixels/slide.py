"""Tiles of a whole-slide image (PS3.3 sections C.8.12.4 and C.7.6.17)."""

from __future__ import annotations

from dataclasses import dataclass

from isocenter.common.index.manifest import ManifestEntry
from isocenter.gpu_stager.pixels import attributes as a
from isocenter.gpu_stager.pixels.facts import NotStageable, PixelFacts

_NOT_SLIDE = {"LABEL", "OVERVIEW"}
"""Photographs of the glass: its label carries a name."""


@dataclass(frozen=True, slots=True)
class Tile:
    """First pixel in the total pixel matrix, from 0; optical path and focal plane, from 0."""

    row: int
    column: int
    optical_path: int = 0
    focal_plane: int = 0


@dataclass(frozen=True, slots=True)
class SlideTiles:
    """Of one instance: size of the total pixel matrix in pixels, and where each frame belongs."""

    rows: int
    columns: int
    tiles: tuple[Tile, ...]


def slide_tiles(entry: ManifestEntry, pixels: PixelFacts) -> SlideTiles:
    """Raises NotStageable."""
    document = entry.metadata
    flavour = a.values(document, "00080008")[2:3]
    if flavour and flavour[0] in _NOT_SLIDE:
        raise NotStageable("photograph-of-the-label", instance_key=entry.instance_key)
    columns, rows = a.integer(document, "00480006"), a.integer(document, "00480007")
    if not rows or not columns or rows < 0 or columns < 0:
        raise NotStageable("no-total-pixel-matrix", instance_key=entry.instance_key)
    own = a.items(document, "52009230")
    if a.text(document, "00209311") == "TILED_FULL" or len(own) != pixels.number_of_frames:
        tiles = _full(document, pixels, rows, columns)
    else:
        tiles = _sparse(own)
    if len(tiles) != pixels.number_of_frames:
        raise NotStageable("tiles-do-not-fill-the-matrix", instance_key=entry.instance_key)
    return SlideTiles(rows, columns, tiles)


def _full(document: dict[str, object], pixels: PixelFacts, rows: int, columns: int) -> tuple[Tile, ...]:
    """Positions are implied: columns fastest, then rows, focal planes, optical paths (PS3.3 C.7.6.17.3)."""
    paths = a.integer(document, "00480302") or max(1, len(a.items(document, "00480105")))
    planes = a.integer(document, "00480303") or 1
    if paths * planes > pixels.number_of_frames:
        return ()
    across, down = -(-columns // pixels.columns), -(-rows // pixels.rows)
    if across * down * paths * planes != pixels.number_of_frames:
        return ()
    return tuple(
        Tile(row * pixels.rows, column * pixels.columns, path, plane)
        for path in range(paths)
        for plane in range(planes)
        for row in range(down)
        for column in range(across)
    )


def _sparse(own: list[dict[str, object]]) -> tuple[Tile, ...]:
    paths: dict[str, int] = {}
    planes: dict[float, int] = {}
    found = []
    for group in own:
        place = a.item(group, "0048021A")
        column, row = a.integer(place, "0048021E"), a.integer(place, "0048021F")
        if row is None or column is None or row < 1 or column < 1:
            return ()
        path = a.text(a.item(group, "00480207"), "00480106")
        depth = a.number(place, "0040074A") or 0.0
        found.append(
            Tile(
                row - 1,
                column - 1,
                paths.setdefault(path, len(paths)),
                planes.setdefault(depth, len(planes)),
            )
        )
    return tuple(found)
