"""What stands beside the pixels of a staged series: everything a reader must know to use them right.

An entry is a folder, whole or not there:

    <cache>/entries/<entry>/
        manifest.json     written last, by a rename: an entry without it does not exist
        zarr.json         a Zarr v3 group
        0/zarr.json       one array per stack of frames of equal shape and meaning
        0/c/0/0/0         its only shard: the volume in C order from offset 0, the index behind it

Names are keyed hashes (`isocenter.common.keys`): no DICOM UID and nothing else about a person is in a
manifest, but the pixels beside it are a patient's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np

from isocenter.common.errors import IntegrityError

FORMAT = "isocenter.staged-series"
VERSION = 1
"""Raised with every change that a reader must not ignore; entries of another version are staged anew."""
MANIFEST = "manifest.json"

Order = Literal["geometry", "instance-number", "frame-number"]
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the voxels are in the patient (PS3.3 section C.7.6.2.1.1), in millimetres.

    Attributes:
        order: how frames were put in order: along the slice normal, or by a number where there is no
            geometry.
        affine: 4 x 4, row by row; takes (column, row, slice, 1) to the patient in RAS+ coordinates, which is
            what MONAI and nibabel call the affine: `volume.T` has its axes. None without a position and
            orientation of every frame.
        orientation: Image Orientation (Patient): row cosines, then column cosines, in LPS+.
        spacing: between rows (0028,0030)[0], between columns (0028,0030)[1], and between the centres of
            slices. The third is None for a single slice, or where there is no geometry.
        uniform: slices are equally far apart, within 1 % of the spacing or 0.01 mm; False: `positions` says
            where.
        gaps: indices i where slice i + 1 is further away than the spacing: slices are missing there.
        duplicates: indices i where slice i + 1 lies at the same place.
        positions: of each slice along the normal, in mm; empty without geometry.
    """

    order: Order
    affine: Matrix | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    uniform: bool = True
    gaps: tuple[int, ...] = ()
    duplicates: tuple[int, ...] = ()
    positions: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Rescale:
    """Modality LUT as a line (PS3.3 section C.11.1): stored value * slope + intercept; one pair for each
    slice or one for all.
    """

    slope: tuple[float, ...] = (1.0,)
    intercept: tuple[float, ...] = (0.0,)
    units: str | None = None
    """Rescale Type (0028,1054): `HU`, `OD`, `US` ...; for PET Units (0054,1001)."""


@dataclass(frozen=True, slots=True)
class Palette:
    """Palette Color Lookup Table (PS3.3 section C.7.6.3.1.5): stored values are indices into it."""

    descriptor: tuple[int, int, int]
    red: tuple[int, ...]
    green: tuple[int, ...]
    blue: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Where the frames of a whole-slide image belong (PS3.3 section C.8.12): level 0 is the largest.

    Attributes:
        level: pyramid level by size.
        rows, columns: of the total pixel matrix.
        row, column: of each frame's first pixel in the total pixel matrix, from 0.
        spacing: mm between rows and between columns.
        path, focal_plane: optical path and plane in depth, from 0, of each frame.
    """

    level: int
    rows: int
    columns: int
    row: tuple[int, ...]
    column: tuple[int, ...]
    spacing: tuple[float, float] | None = None
    optical_path: tuple[int, ...] = ()
    focal_plane: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one shape and meaning: one Zarr array.

    Attributes:
        path: of the array below the entry: `0`, `1`, ...
        data: of the file that begins with the volume, below the entry.
        shape: (slices, rows, columns), or (slices, rows, columns, 3) in colour by pixel.
        dtype: of a stored value, numpy's notation, little endian.
        block_frames: frames in a block; a block begins at a multiple of 4 KiB where the shape allows.
        blocks: XXH3-128 of each block as stored, lower-case hex; where frames do not fill the last one, zeros
            do.
        bits_stored, pixel_representation, photometric_interpretation: as PS3.3 section C.7.6.3 has them,
            after decoding: YBR that a codec or we turned into RGB says RGB.
        frames: of each slice: index of its source, and its number there, from 1.
        window: Window Center and Window Width of the first frame, for a first look.
        pixel_padding: Pixel Padding Value (0028,0120).
    """

    path: str
    data: str
    shape: tuple[int, ...]
    dtype: str
    block_frames: int
    blocks: tuple[str, ...]
    bits_stored: int
    pixel_representation: int
    photometric_interpretation: str
    frames: tuple[tuple[int, int], ...]
    geometry: Geometry
    rescale: Rescale = field(default_factory=Rescale)
    window: tuple[float, float] | None = None
    pixel_padding: int | None = None
    modality_lut: Mapping[str, Any] | None = None
    """Modality LUT Sequence where it is no line: `{"descriptor": [...], "data": [...]}`."""
    palette: Palette | None = None
    tiles: Tiles | None = None
    lossy: bool = False
    """Lossy Image Compression (0028,2110) is 01, or the transfer syntax is lossy."""

    @property
    def frame_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def volume_bytes(self) -> int:
        return self.frame_bytes * self.shape[0]


@dataclass(frozen=True, slots=True)
class Source:
    """An instance that went into the entry, as the index has it."""

    instance_key: str
    object_key: str
    content_digest: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A staged series.

    Attributes:
        name: `<series key>-<first 16 hex digits of content>`, the folder's name. A series that changed is
            another entry.
        content: SHA-256 over the sources' keys and digests and the layout's version.
        left_out: instances without pixels, or with pixels that cannot be staged: instance key -> reason.
    """

    name: str
    study_key: str
    series_key: str
    content: str
    modality: str
    stacks: tuple[Stack, ...]
    sources: tuple[Source, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    """Of the data files."""

    def to_json(self) -> bytes:
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(document, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises IntegrityError: not a manifest of a version that this release reads."""
        try:
            document = json.loads(data)
            if document.pop("format") != FORMAT or document.pop("version") != VERSION:
                raise IntegrityError("a staged series of another format or version")
            document["stacks"] = tuple(_stack(one) for one in document["stacks"])
            document["sources"] = tuple(Source(**one) for one in document["sources"])
            return cls(**document)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise IntegrityError("not the manifest of a staged series") from None


def _stack(document: dict[str, Any]) -> Stack:
    palette, tiles = document.pop("palette"), document.pop("tiles")
    frames = tuple((int(source), int(number)) for source, number in document.pop("frames"))
    return Stack(
        **_tuples(document, "geometry", "rescale"),
        frames=frames,
        geometry=Geometry(**_geometry(document["geometry"])),
        rescale=Rescale(**_tuples(document["rescale"])),
        palette=None if palette is None else Palette(**_tuples(palette)),
        tiles=None if tiles is None else Tiles(**_tuples(tiles)),
    )


def _geometry(document: dict[str, Any]) -> dict[str, Any]:
    affine = document["affine"]
    return {**_tuples(document), "affine": None if affine is None else tuple(map(tuple, affine))}


def _tuples(document: dict[str, Any], *but: str) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in document.items()
        if name not in but
    }
