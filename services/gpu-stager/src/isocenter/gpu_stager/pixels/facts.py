"""What one instance says of its pixels and of each frame: the Image Pixel module (PS3.3 section C.7.6.3),
planes, rescale and windows, from wherever the kind of object keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from isocenter.common.errors import Permanent
from isocenter.common.index.manifest import ManifestEntry
from isocenter.common.index.records import DicomJson
from isocenter.gpu_stager.pixels import attributes as a

WHOLE_SLIDE: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
RT_DOSE: Final = "1.2.840.10008.5.1.4.1.1.481.2"
_PIXELS: Final = {"7FE00010": "PixelData", "7FE00008": "FloatPixelData", "7FE00009": "DoubleFloatPixelData"}
_MAX_PIXELS: Final = 1 << 32


class NotStageable(Permanent):
    """The instance has no pixels that make an array. `reason` is one of a documented list."""

    code = "not-stageable"

    def __init__(self, reason: str, **ids: str | int) -> None:
        super().__init__(reason, **ids)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PixelFacts:
    """How the pixels of an instance are encoded. Names as pydicom's decoders want them."""

    keyword: str
    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    planar_configuration: int
    number_of_frames: int
    value_representation: str
    """`OB` or `OW`: in big endian bytes of OW are swapped in pairs (PS3.5 annex A.3)."""


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What is true of one frame. Absent: None.

    Attributes:
        number: from 1.
        position, orientation: Image Position and Orientation (Patient), LPS+ in mm.
        spacing: Pixel Spacing: between rows, between columns.
        thickness: Spacing Between Slices, or Slice Thickness.
    """

    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slope: float
    intercept: float
    units: str | None
    window: tuple[float, float] | None


def pixel_facts(entry: ManifestEntry) -> PixelFacts:
    """Raises NotStageable."""
    document = entry.metadata
    keywords = [name for tag, name in _PIXELS.items() if tag in document]
    if not keywords:
        raise NotStageable("no-pixels")
    if len(keywords) > 1:
        raise NotStageable("several-pixel-elements")
    rows, columns = a.integer(document, "00280010"), a.integer(document, "00280011")
    bits = a.integer(document, "00280100")
    samples = a.integer(document, "00280002") or 1
    frames = max(1, a.integer(document, "00280008") or 1)
    if not rows or not columns or rows < 0 or columns < 0:
        raise NotStageable("no-rows-or-columns")
    if keywords[0] == "FloatPixelData":
        bits = 32
    elif keywords[0] == "DoubleFloatPixelData":
        bits = 64
    if bits not in {1, 8, 16, 32, 64} or samples not in {1, 3} or rows * columns * samples > _MAX_PIXELS:
        raise NotStageable("bits-or-samples-unsupported")
    tag = next(tag for tag, name in _PIXELS.items() if name == keywords[0])
    return PixelFacts(
        keyword=keywords[0],
        rows=rows,
        columns=columns,
        samples_per_pixel=samples,
        photometric_interpretation=a.text(document, "00280004") or "MONOCHROME2",
        bits_allocated=bits,
        bits_stored=a.integer(document, "00280101") or bits,
        pixel_representation=a.integer(document, "00280103") or 0,
        planar_configuration=a.integer(document, "00280006") or 0,
        number_of_frames=frames,
        value_representation=str(document[tag].get("vr", "OW")),
    )


def frame_facts(entry: ManifestEntry, frames: int) -> list[FrameFacts]:
    """One for each frame, in the order of the file."""
    document = entry.metadata
    offsets = _dose_offsets(entry, frames)
    found = []
    for index, places in enumerate(a.groups(document, frames)):
        orientation = _first_numbers(places, "00209116", "00200037", 6)
        position: tuple[float, ...] | None = _first_numbers(places, "00209113", "00200032", 3)
        if frames > 1 and position and not a.numbers(a.item(places[0], "00209113"), "00200032", 3):
            # One position for many frames says where the first one is, and no more.
            position = _moved(position, orientation, offsets[index]) if offsets else None
        measures = _place(places, "00289110", "00280030")
        spacing = a.numbers(measures, "00280030", 2) or a.numbers(document, "00181164", 2)
        transform = _place(places, "00289145", "00281053")
        slope, intercept = a.number(transform, "00281053"), a.number(transform, "00281052")
        window = _place(places, "00289132", "00281050")
        center, width = a.number(window, "00281050"), a.number(window, "00281051")
        if entry.sop_class_uid == RT_DOSE:
            slope = a.number(document, "3004000E")
        found.append(
            FrameFacts(
                number=index + 1,
                position=position or None,
                orientation=orientation or None,
                spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
                thickness=a.number(measures, "00180088") or a.number(measures, "00180050"),
                slope=1.0 if slope is None else slope,
                intercept=0.0 if intercept is None else intercept,
                units=_units(document, transform),
                window=(center, width) if center is not None and width is not None else None,
            )
        )
    return found


def _place(places: tuple[DicomJson, ...], group: str, tag: str) -> DicomJson:
    """The most specific document that has the element: an item of the functional group, or the data set."""
    for place in places:
        inside = a.item(place, group)
        if tag in inside:
            return inside
    return places[-1]


def _first_numbers(places: tuple[DicomJson, ...], group: str, tag: str, count: int) -> tuple[float, ...]:
    found = a.numbers(_place(places, group, tag), tag, count)
    # Nuclear medicine keeps the plane of its first slice with the detector (PS3.3 section C.8.4.11).
    return found or a.numbers(a.item(places[-1], "00540022"), tag, count)


def _units(document: DicomJson, transform: DicomJson) -> str | None:
    """Dose Units, Units of a PET series, Rescale Type: code strings, never free text."""
    for place, tag in ((document, "30040002"), (document, "00541001"), (transform, "00281054")):
        value = a.text(place, tag)
        if value and len(value) <= 16 and value.replace("_", "").replace("/", "").isalnum():
            return value
    return None


def _dose_offsets(entry: ManifestEntry, frames: int) -> tuple[float, ...]:
    """Grid Frame Offset Vector (PS3.3 section C.8.8.3.2), or equal steps where an object of many slices says
    how far they are apart and nothing else.
    """
    document = entry.metadata
    offsets = a.numbers(document, "3004000C", frames)
    if offsets:
        return tuple(offset - offsets[0] for offset in offsets)
    step = a.number(document, "00180088")
    is_volume = a.values(document, "00080008")[2:3] == ["RECON TOMO"] or entry.sop_class_uid == RT_DOSE
    return tuple(step * index for index in range(frames)) if step and is_volume else ()


def _moved(
    position: tuple[float, ...], orientation: tuple[float, ...], distance: float
) -> tuple[float, ...] | None:
    if not orientation:
        return None
    rx, ry, rz, cx, cy, cz = orientation
    normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
    return tuple(p + distance * n for p, n in zip(position, normal, strict=True))
