"""Order of slices and the affine of a volume, from planes (PS3.3 section C.7.6.2.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from isocenter.gpu_stager.manifest import Geometry, Matrix, Order
from isocenter.gpu_stager.pixels.facts import FrameFacts

SAME_DIRECTION: Final = 5e-3
"""Cosines that differ by less are of the same plane; a third of a degree."""
SAME_PLACE: Final = 1e-2
"""Millimetres."""
UNEVEN: Final = 0.01
"""Of the spacing."""


def has_plane(frame: FrameFacts) -> bool:
    """Position and a proper orientation: unit vectors at right angles."""
    if frame.position is None or frame.orientation is None:
        return False
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    lengths = abs(row @ row - 1), abs(column @ column - 1)
    return bool(max(*lengths, abs(row @ column)) < 0.01)


def normal(orientation: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(x) for x in np.cross(orientation[:3], orientation[3:]))


def distance(frame: FrameFacts, direction: Sequence[float]) -> float:
    """Along the normal, in mm."""
    return float(np.dot(frame.position or (0.0, 0.0, 0.0), direction))


def parallel(one: Sequence[float], other: Sequence[float]) -> bool:
    return max(abs(x - y) for x, y in zip(one, other, strict=True)) < SAME_DIRECTION


def of_planes(frames: Sequence[FrameFacts]) -> Geometry:
    """Of frames with parallel planes, in the order of their distance along the normal."""
    orientation = frames[0].orientation or ()
    direction = normal(orientation)
    places = [distance(frame, direction) for frame in frames]
    steps = np.diff(places)
    moving = steps[steps > SAME_PLACE]
    step = float(np.median(moving)) if len(moving) else None
    tolerance = max(SAME_PLACE, UNEVEN * step) if step is not None else SAME_PLACE
    spacing = frames[0].spacing or (None, None)
    return Geometry(
        order="geometry",
        affine=_affine(frames, step),
        orientation=tuple(orientation),
        spacing=(*spacing, step),
        uniform=step is None or bool(np.all(np.abs(steps - step) <= tolerance)),
        gaps=tuple(int(i) for i in np.flatnonzero(steps > (step or np.inf) + tolerance)),
        duplicates=tuple(int(i) for i in np.flatnonzero(steps <= SAME_PLACE)),
        positions=tuple(round(place, 6) for place in places),
    )


def without_planes(frames: Sequence[FrameFacts], order: Order) -> Geometry:
    return Geometry(order=order, spacing=(*(frames[0].spacing or (None, None)), None))


def _affine(frames: Sequence[FrameFacts], step: float | None) -> Matrix | None:
    """(column, row, slice, 1) to RAS+: the first frame's plane, and the way from the first to the last."""
    first, last = frames[0], frames[-1]
    if first.spacing is None or first.orientation is None or first.position is None or last.position is None:
        return None
    between_rows, between_columns = first.spacing
    matrix = np.eye(4)
    matrix[:3, 0] = np.multiply(first.orientation[:3], between_columns)
    matrix[:3, 1] = np.multiply(first.orientation[3:], between_rows)
    if step is not None:
        # A tilted gantry shears the volume: the way between positions is not the normal.
        matrix[:3, 2] = np.subtract(last.position, first.position) / (len(frames) - 1)
    else:
        matrix[:3, 2] = np.multiply(normal(first.orientation), first.thickness or 1.0)
    matrix[:3, 3] = first.position
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    return tuple(tuple(float(x) + 0.0 for x in row) for row in ras)
