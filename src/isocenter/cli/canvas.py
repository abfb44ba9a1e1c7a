"""One slice of the phantom as a canvas: shapes in millimetres, painted in Hounsfield units, edges soft."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

AIR = -1000.0
FIELD_OF_VIEW_MM = 400.0


class Canvas:
    """One slice: HU values over warped coordinates, so that no outline is a perfect ellipse."""

    def __init__(self, x: Field, y: Field, spacing: float) -> None:
        self.hu: Field = np.full(x.shape, AIR, dtype=np.float32)
        self._x, self._y, self._spacing = x, y, spacing
        self._half = FIELD_OF_VIEW_MM / 2

    def blob(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        value: float,
        *,
        angle: float = 0.0,
        power: float = 2.0,
        edge: float = 1.2,
        strength: float = 1.0,
    ) -> None:
        """Paints a superellipse with a soft edge of `edge` millimetres over what is there."""
        if min(radii) <= 0.4:
            return
        cover, window = self._cover(centre, radii, angle, power, edge)
        if window is None:
            return
        area = self.hu[window]
        area += (value - area) * (cover * np.float32(strength) if strength < 1.0 else cover)

    def shell(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        outer: float,
        inner: float,
        wall: float,
        *,
        angle: float = 0.0,
        power: float = 2.0,
    ) -> None:
        """A blob with a wall of `wall` millimetres: cortex around marrow, bowel around its content."""
        self.blob(centre, radii, outer, angle=angle, power=power)
        self.blob(centre, (radii[0] - wall, radii[1] - wall), inner, angle=angle, power=power)

    def _cover(
        self, centre: tuple[float, float], radii: tuple[float, float], angle: float, power: float, edge: float
    ) -> tuple[Field, tuple[slice, slice] | None]:
        reach_x = abs(radii[0] * math.cos(angle)) + abs(radii[1] * math.sin(angle)) + 9.0
        reach_y = abs(radii[0] * math.sin(angle)) + abs(radii[1] * math.cos(angle)) + 9.0
        rows = self._indices(centre[1], reach_y)
        columns = self._indices(centre[0], reach_x)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return np.empty((0, 0), np.float32), None
        window = (rows, columns)
        u: Field = self._x[window] - np.float32(centre[0])
        v: Field = self._y[window] - np.float32(centre[1])
        if angle:
            cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
            u, v = u * cosine + v * sine, v * cosine - u * sine
        u *= np.float32(1 / radii[0])
        v *= np.float32(1 / radii[1])
        if power == 2.0:
            u *= u
            v *= v
            u += v
            np.sqrt(u, out=u)
        else:
            sum_of_powers = np.abs(u) ** np.float32(power) + np.abs(v) ** np.float32(power)
            u = (sum_of_powers ** np.float32(1 / power)).astype(np.float32, copy=False)
        u *= np.float32(-min(radii) / edge)
        u += np.float32(min(radii) / edge + 0.5)
        return u.clip(0.0, 1.0), window

    def _indices(self, centre: float, reach: float) -> slice:
        size = len(self.hu)
        low = int((centre - reach + self._half) / self._spacing)
        high = int((centre + reach + self._half) / self._spacing) + 2
        return slice(max(0, low), min(size, high))
