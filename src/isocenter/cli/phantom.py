"""A torso in Hounsfield units, drawn slice by slice: what the demo sends where a patient must not be.

Contrast-enhanced chest and upper abdomen, arms raised, on a couch. Coordinates are millimetres in the
patient system of PS3.3 C.7.6.2.1.1: x towards the patient's left, y towards the back, z towards the head;
z counts from the lowest slice of a 400 mm volume. Nothing here is measured from a person.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isocenter.cli.canvas import AIR, FIELD_OF_VIEW_MM, Canvas, Field

LUNG, FAT, WATER, MUSCLE = -865.0, -102.0, 8.0, 56.0
LIVER, SPLEEN, KIDNEY, VEIN, ARTERY = 108.0, 122.0, 185.0, 155.0, 265.0
MARROW, CORTEX, CARTILAGE = 230.0, 820.0, 115.0

HEIGHT_MM = 400.0


@dataclass(frozen=True, slots=True)
class _Tube:
    """Points along vessels, sorted by z, so that a slice finds its own with two bisections."""

    z: Field
    x: Field
    y: Field
    radius: Field

    def between(self, low: float, high: float) -> Iterator[tuple[float, float, float]]:
        first, last = np.searchsorted(self.z, [low, high])
        yield from zip(
            self.x[first:last].tolist(),
            self.y[first:last].tolist(),
            self.radius[first:last].tolist(),
            strict=True,
        )


def _ramp(z: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, smooth between."""
    t = min(1.0, max(0.0, (z - low) / (high - low)))
    return t * t * (3 - 2 * t)


def _dome(z: float, low: float, top: float, belly: float) -> float:
    """Relative radius of an organ that is widest at `belly` and closes at `low` and `top`."""
    if not low < z < top:
        return 0.0
    t = (z - belly) / (top - belly) if z > belly else (belly - z) / (belly - low)
    return math.sqrt(max(0.0, 1.0 - t * t))


class Torso:
    """The phantom of one seed: `slice_at(z)` gives the Hounsfield values of one axial slice."""

    def __init__(self, seed: int, size: int = 512) -> None:
        self._random = np.random.default_rng(seed)
        self._size = size
        self._spacing = FIELD_OF_VIEW_MM / size
        axis = ((np.arange(size) + 0.5) * self._spacing - FIELD_OF_VIEW_MM / 2).astype(np.float32)
        self._x, self._y = np.meshgrid(axis, axis)
        self._warps = [self._smooth_field(cells) for cells in (5, 5, 5, 5, 11, 11)]
        self._textures = [self._smooth_field(48) for _ in range(4)]
        self._fine = [self._smooth_field(110) for _ in range(4)]
        self._grain = self._grain_fields(5)
        self._lung_vessels = self._lung_tree()
        self._liver_vessels = self._liver_tree()
        self._bowel = self._bowel_loops()
        self._mesentery = self._mesentery_tree()

    def slice_at(self, z: float) -> npt.NDArray[np.int16]:
        """HU of the slice at z millimetres, clipped to [-1024, 3071]."""
        canvas = Canvas(*self._warped(z), self._spacing)
        self._couch(canvas)
        self._wall(canvas, z)
        self._abdomen(canvas, z)
        self._lungs(canvas, z)
        self._mediastinum(canvas, z)
        self._upper_abdomen(canvas, z)
        self._ribs(canvas, z)
        self._spine(canvas, z)
        self._shoulders(canvas, z)
        return self._finish(canvas.hu, z)

    # Fields -----------------------------------------------------------------------------------------------

    def _smooth_field(self, cells: int) -> Field:
        """Smooth noise of unit variance over the slice, periodic, `cells` bumps across."""
        coarse = self._random.standard_normal((cells, cells)).astype(np.float32)
        position = np.arange(self._size, dtype=np.float32) * cells / self._size
        low = position.astype(np.intp)
        t = position - low
        t = t * t * (3 - 2 * t)
        high = (low + 1) % cells
        rows = coarse[low] * (1 - t)[:, None] + coarse[high] * t[:, None]
        field = rows[:, low] * (1 - t) + rows[:, high] * t
        return (field / max(1e-6, float(field.std()))).astype(np.float32)

    def _grain_fields(self, count: int) -> list[Field]:
        """Noise as a reconstruction kernel leaves it: neighbouring pixels agree a little."""
        fields = []
        for _ in range(count):
            raw = self._random.standard_normal((self._size, self._size)).astype(np.float32)
            mixed = raw + 0.7 * (np.roll(raw, 1, 0) + np.roll(raw, 1, 1)) + 0.4 * np.roll(raw, (1, 1), (0, 1))
            fields.append((mixed / mixed.std()).astype(np.float32))
        return fields

    def _warped(self, z: float) -> tuple[Field, Field]:
        """Coordinates displaced by a few millimetres, changing slowly from slice to slice."""
        turn = z / HEIGHT_MM * 2 * math.pi
        a, b, c, d, e, f = self._warps
        large, small = np.float32(2.6), np.float32(0.9)
        x = self._x + large * (math.cos(turn) * a + math.sin(turn) * b) + small * math.cos(3 * turn) * e
        y = self._y + large * (math.cos(turn) * c + math.sin(turn) * d) + small * math.sin(3 * turn) * f
        return x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)

    def _finish(self, hu: Field, z: float) -> npt.NDArray[np.int16]:
        """Tissue texture, lung shading with gravity, and noise that is stronger through the shoulders."""
        step = int(z / HEIGHT_MM * 1000)
        phase = (z / 9.0) % 4
        first, share = int(phase), np.float32(phase % 1)
        texture = self._textures[first] * (1 - share) + self._textures[(first + 1) % 4] * share
        fine = self._fine[first] * (1 - share) + self._fine[(first + 1) % 4] * share
        lung = (hu < -700) & (hu > -960)
        hu += np.where(
            lung, 14 * texture + 22 * fine + 0.45 * self._y, np.where(hu > -400, 5 * texture + 4 * fine, 0)
        )
        sigma = 9.0 + 9.0 * _ramp(z, 320, 390)
        grain = self._grain[step % len(self._grain)]
        shift = (step * 37 % self._size, step * 91 % self._size)
        hu += np.float32(sigma) * np.roll(grain, shift, (0, 1))
        return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)

    # Trees ------------------------------------------------------------------------------------------------

    def _branches(
        self, root: tuple[float, float, float], tips: npt.NDArray[np.float64], radius: float, sag: float
    ) -> list[npt.NDArray[np.float64]]:
        start = np.array(root)
        out = []
        for tip in tips:
            steps = max(8, int(np.linalg.norm(tip - start) / 1.1))
            t = np.linspace(0.0, 1.0, steps)[:, None]
            bend = self._random.normal(0, sag, 3)
            path = start + (tip - start) * t + bend * np.sin(np.pi * t)
            taper = radius * (1 - 0.82 * t) * self._random.uniform(0.75, 1.15)
            out.append(np.hstack([path, taper]))
        return out

    @staticmethod
    def _tube(branches: list[npt.NDArray[np.float64]]) -> _Tube:
        points = np.vstack(branches)
        columns: Field = points[np.argsort(points[:, 2])].T.astype(np.float32)
        x, y, z, radius = columns
        return _Tube(z=z, x=x, y=y, radius=radius)

    def _lung_tree(self) -> _Tube:
        branches: list[npt.NDArray[np.float64]] = []
        for side in (-1.0, 1.0):
            count = 120
            turn = self._random.uniform(0, 2 * math.pi, count)
            reach = self._random.uniform(0.55, 0.97, count)
            z = self._random.uniform(165, 372, count)
            narrow = np.array([max(0.25, _dome(float(v), 130, 392, 215)) for v in z])
            tips = np.column_stack(
                [
                    side * 70 + 50 * reach * narrow * np.cos(turn),
                    4 + 76 * reach * narrow * np.sin(turn),
                    z,
                ]
            )
            main = self._branches((side * 34, 12, 262), tips, 3.7, 7.0)
            branches += main
            for parent in main[::2]:
                middle = parent[len(parent) // 2]
                twigs = middle[:3] + self._random.normal(0, 19, (3, 3))
                branches += self._branches(
                    (middle[0], middle[1], middle[2]), twigs, float(middle[3]) * 0.8, 3.0
                )
        return self._tube(branches)

    def _liver_tree(self) -> _Tube:
        tips = self._random.uniform((-125, -60, 90), (10, 50, 190), (26, 3))
        return self._tube(self._branches((-35, 4, 130), tips, 4.8, 9.0))

    def _mesentery_tree(self) -> _Tube:
        tips = self._random.uniform((-85, -60, -10), (85, 0, 90), (46, 3))
        return self._tube(self._branches((4, 18, 104), tips, 3.4, 9.0))

    def _bowel_loops(self) -> list[tuple[float, float, float, float, float, float]]:
        """(x, y, z, radius, content HU, gas share) of loops in front of the spine, below the stomach."""
        loops = []
        for _ in range(72):
            x, y = self._random.uniform(-92, 92), self._random.uniform(-66, 8)
            gas = float(self._random.uniform(0.25, 0.75)) if self._random.random() < 0.4 else 0.0
            z, radius = self._random.uniform(-15, 92), self._random.uniform(10, 17)
            loops.append((x, y, z, radius, float(self._random.uniform(10, 75)), gas))
        loops += [(-108.0, 12.0, z, 21.0, -20.0, 0.45) for z in (0.0, 30.0, 58.0)]
        loops += [(110.0, 14.0, z, 17.0, 10.0, 0.3) for z in (0.0, 28.0, 56.0, 84.0)]
        return sorted(loops, key=lambda loop: loop[1])

    # Anatomy ----------------------------------------------------------------------------------------------

    def _couch(self, canvas: Canvas) -> None:
        canvas.blob((0, 18), (180, 108), -820, power=2.6)
        canvas.blob((0, 14), (178, 107), AIR, power=2.6)
        canvas.blob((0, 139), (174, 11), -640, power=6)
        canvas.blob((0, 139), (172, 8.5), -940, power=6)

    def _shape(self, z: float) -> tuple[float, float, float]:
        """Half width, half depth and fat thickness of the trunk at z."""
        shoulders = _ramp(z, 305, 390)
        waist = 1 - 0.07 * math.exp(-(((z - 70) / 70) ** 2))
        width = 163 * waist + 22 * shoulders
        depth = 112 - 6 * math.exp(-(((z - 330) / 60) ** 2)) - 14 * _ramp(z, 350, 420)
        fat = 17 - 8 * _ramp(z, 90, 240)
        return width, depth, fat

    def _wall(self, canvas: Canvas, z: float) -> None:
        width, depth, fat = self._shape(z)
        power = 2.45 - 0.2 * _ramp(z, 320, 400)
        canvas.blob((0, 0), (width, depth), 15, power=power)
        canvas.blob((0, 0), (width - 2.2, depth - 2.2), FAT, power=power)
        canvas.blob((0, 4), (width - fat, depth - fat + 1), MUSCLE, power=power)
        # The muscle layers of the flank, with fat between them.
        if z < 170:
            for inset in (5.0, 10.0):
                canvas.blob(
                    (0, 4), (width - fat - inset, depth - fat - inset), -45, power=power, strength=0.75
                )
                canvas.blob(
                    (0, 4), (width - fat - inset - 1.2, depth - fat - inset - 1.2), MUSCLE, power=power
                )
        pectoral = _dome(z, 235, 375, 310)
        for side in (-1, 1):
            if pectoral:
                canvas.blob(
                    (side * 66, 24 - depth), (62 * pectoral, 15 * pectoral), MUSCLE, angle=side * 0.22
                )
                canvas.blob(
                    (side * 70, 31 - depth), (52 * pectoral, 2.2), FAT, angle=side * 0.22, strength=0.7
                )
            latissimus = _dome(z, 140, 390, 290)
            canvas.blob(
                (side * (width - 26), 34), (14 * latissimus, 48 * latissimus), MUSCLE, angle=-side * 0.25
            )
            if z < 60:
                canvas.blob((side * 26, 18 - depth), (25, 6.5), MUSCLE, power=2.6)

    def _abdomen(self, canvas: Canvas, z: float) -> None:
        if z > 205:
            return
        width, depth, fat = self._shape(z)
        canvas.blob((0, -6), (width - fat - 15, depth - fat - 17), FAT - 2, power=2.4)
        for side in (-1, 1):
            canvas.blob((side * 40, 66), (17, 22 * (1 - 0.5 * _ramp(z, 70, 130))), MUSCLE, angle=side * 0.3)
            psoas = 1 - _ramp(z, 55, 118)
            canvas.blob((side * 37, 48), (15 * psoas, 18 * psoas), MUSCLE + 4)
            lumborum = 1 - _ramp(z, 50, 95)
            canvas.blob((side * 68, 68), (22 * lumborum, 10 * lumborum), MUSCLE, angle=-side * 0.4)
        for x, y, radius in self._mesentery.between(z - 1.0, z + 1.0):
            canvas.blob((x, y), (radius + 0.6, radius + 0.6), VEIN - 20, edge=1.6)
        for x, y, centre, radius, content, gas in self._bowel:
            size = radius * _dome(z, centre - radius * 1.7, centre + radius * 1.7, centre)
            if size < 3:
                continue
            canvas.shell((x, y), (size * 1.2, size), 62, content, 2.4)
            if gas:
                canvas.blob((x, y - size * 0.42), (size * 0.86, size * gas * 0.62), AIR + 20, edge=0.9)
        self._kidneys(canvas, z)

    def _kidneys(self, canvas: Canvas, z: float) -> None:
        for side, centre in ((-1, 78.0), (1, 88.0)):
            size = _dome(z, centre - 58, centre + 58, centre)
            if not size:
                continue
            x, y = side * (66 - 0.10 * (z - centre)), 42.0
            angle = side * 0.5
            canvas.blob((x, y), (33 * size + 8, 36 * size + 8), FAT)
            canvas.blob((x, y), (25 * size, 31 * size), KIDNEY, angle=angle)
            for turn in np.linspace(0.4, 5.9, 7):
                px = x + 13.5 * size * math.cos(float(turn) + z / 21)
                py = y + 18 * size * math.sin(float(turn) + z / 21)
                canvas.blob((px, py), (5.2 * size, 5.2 * size), 118, edge=2.5)
            sinus = _dome(z, centre - 34, centre + 34, centre)
            canvas.blob((x - side * 9, y - 3), (13 * sinus, 11 * sinus), FAT + 15, angle=angle, edge=2.0)
            canvas.blob((x - side * 13, y - 4), (6 * sinus, 3.6 * sinus), 20, angle=angle)
            if abs(z - centre) < 7:
                canvas.blob((x - side * 32, y - 10), (20, 3.6), VEIN, angle=-side * 0.25)

    def _lungs(self, canvas: Canvas, z: float) -> None:
        for side in (-1, 1):
            size = _dome(z, 128 if side > 0 else 138, 394, 214)
            if not size:
                continue
            narrow = size ** (0.55 if z < 214 else 0.85)
            centre = (side * (71 - 12 * _ramp(z, 300, 390)), 3 + 10 * (1 - _ramp(z, 128, 200)))
            # Base: the lung is a crescent behind the dome of the diaphragm.
            canvas.blob(centre, (53 * narrow + 3, 80 * narrow + 3), MUSCLE, power=2.5, angle=side * 0.1)
            canvas.blob(centre, (53 * narrow, 80 * narrow), LUNG, power=2.5, angle=side * 0.1)
            # The fissure, a hairline.
            if 190 < z < 330:
                y = 30 - (z - 190) * 0.42
                canvas.blob((centre[0], y), (42 * narrow, 0.8), -740, angle=side * 0.35, strength=0.5)
        for x, y, radius in self._lung_vessels.between(z - 1.0, z + 1.0):
            if self._inside_lung(x, y, z):
                canvas.blob((x, y), (radius + 0.35, radius + 0.35), 40, edge=1.4)
        self._airways(canvas, z)

    @staticmethod
    def _inside_lung(x: float, y: float, z: float) -> bool:
        side = 1 if x > 0 else -1
        size = _dome(z, 128 if side > 0 else 138, 394, 214)
        narrow = size ** (0.55 if z < 214 else 0.85) if size else 0.0
        if not narrow:
            return False
        u, v = (x - side * 70) / (53 * narrow), (y - 5) / (80 * narrow)
        return u * u + v * v < 0.93

    def _airways(self, canvas: Canvas, z: float) -> None:
        for side in (-1, 1):
            if 205 < z < 284:
                x = side * (6 + (284 - z) * 0.5)
                radius = 6.5 - 0.045 * (284 - z)
                canvas.shell((x, 8 + (284 - z) * 0.09), (radius + 1.8, radius + 2.2), 40, AIR + 15, 1.7)

    def _mediastinum(self, canvas: Canvas, z: float) -> None:
        if z > 190:
            upper = _ramp(z, 262, 300)
            canvas.blob((0, -2), (40 - 8 * upper, 60 - 8 * upper), FAT + 12, power=2.2, edge=2.0)
            canvas.blob((0, -50), (24, 24), FAT + 6, edge=3.0)
        heart = _dome(z, 158, 268, 205)
        if heart:
            canvas.blob((24, -18), (66 * heart, 52 * heart), FAT + 8, angle=0.55, edge=2.0)
            canvas.blob((24, -18), (62 * heart, 48 * heart), 92, angle=0.55)
            chambers = _dome(z, 166, 262, 205)
            canvas.blob((52, -10), (29 * chambers, 21 * chambers), ARTERY - 25, angle=0.6, edge=2.2)
            for turn in (0.0, 2.1):
                muscle = (52 + 14 * math.cos(turn + 1.0), -8 + 9 * math.sin(turn + 1.0))
                canvas.blob(muscle, (3.6 * chambers, 3.0 * chambers), 95)
            canvas.blob((14, -40), (29 * chambers, 15 * chambers), VEIN + 40, angle=0.35, edge=2.0)
            canvas.blob((-24, -14), (19 * chambers, 24 * chambers), VEIN + 30, angle=0.2, edge=2.0)
            atrium = _dome(z, 205, 266, 234)
            canvas.blob((12, 20), (28 * atrium, 17 * atrium), ARTERY - 30, edge=2.0)
        if 232 < z < 300:
            canvas.blob((-10, -26), (16.5, 16.5), MUSCLE)
            canvas.blob((-10, -26), (15, 15), ARTERY)
        if 246 < z < 274:
            canvas.blob((16, -32), (15, 14), ARTERY - 60)
            canvas.blob((30, -4), (30, 9.5), ARTERY - 60, angle=0.8)
            canvas.blob((-22, -2), (27, 8.5), ARTERY - 60, angle=-0.25)
        arch = _dome(z, 286, 316, 300)
        if arch:
            canvas.blob((14, 8), (14.5 * arch + 1, 42 * arch + 4), MUSCLE, angle=-0.42)
            canvas.blob((14, 8), (13 * arch, 40 * arch + 3), ARTERY, angle=-0.42)
        if z > 310:
            for x, y, radius in ((-18, -16, 6.2), (6, -18, 4.6), (20, -2, 5.2)):
                canvas.blob((x * (1 + (z - 310) / 190), y), (radius, radius), ARTERY)
            canvas.blob((30 + (z - 310) * 0.25, -26), (8, 6), VEIN)
            canvas.blob((-36 - (z - 310) * 0.2, -24), (8, 7), VEIN + 60)
        if z > 274:
            canvas.shell((-9 + 8 * _ramp(z, 310, 380), 14), (10.2, 9.6), 75, AIR + 10, 1.8)
        elif z > 205:
            self._airways(canvas, z)
        if 236 < z < 316:
            canvas.blob((-31, -20), (9.5, 8.5), VEIN + 80)
        if z > 366:
            for side in (-1, 1):
                canvas.blob((side * 18, -2), (9, 15), 140, angle=side * 0.3)

    def _upper_abdomen(self, canvas: Canvas, z: float) -> None:
        liver = _dome(z, 52, 206, 128)
        if liver:
            self._liver(canvas, z, liver)
        under = _dome(z, 60, 200, 128)
        if z > 120:
            canvas.blob(
                (62, 2), (60 * under**0.7 + 2.5, 76 * under**0.7 + 2.5), MUSCLE, power=2.4, angle=0.08
            )
            canvas.blob((62, 2), (60 * under**0.7, 76 * under**0.7), FAT - 2, power=2.4, angle=0.08)
        spleen = _dome(z, 100, 194, 146)
        canvas.blob((94, 34), (21 * spleen, 40 * spleen), SPLEEN, angle=0.35)
        canvas.blob((77, 28), (9 * spleen, 10 * spleen), FAT, edge=4.0)
        stomach = _dome(z, 92, 198, 150)
        if stomach:
            canvas.shell((58, -26), (40 * stomach, 32 * stomach), 85, 22, 4.5, angle=0.4)
            canvas.blob((55, -36), (30 * stomach, 15 * stomach), AIR + 20, angle=0.1)
        pancreas = _dome(z, 96, 132, 114)
        canvas.blob((34, 6), (38 * pancreas, 9.5 * pancreas), 92, angle=-0.35, edge=2.5)
        canvas.blob((-8, 4), (17 * pancreas, 12 * pancreas), 92, edge=2.5)
        if z < 210:
            canvas.blob((-24, 30), (12, 9.5), VEIN, angle=0.2)
        if z < 300:
            canvas.blob((15 + 9 * _ramp(z, 120, 220), 36 + 9 * _ramp(z, 110, 210)), (12.2, 12.2), MUSCLE)
            canvas.blob((15 + 9 * _ramp(z, 120, 220), 36 + 9 * _ramp(z, 110, 210)), (10.8, 10.8), ARTERY)
        if 150 < z < 380:
            canvas.shell((3, 31), (7.5, 5.5), 45, 15, 3.2)
        if 98 < z < 112:
            canvas.blob((12, 14), (4.5, 14), ARTERY)

    def _liver(self, canvas: Canvas, z: float, size: float) -> None:
        broad = size**0.7
        canvas.blob((-62, -2), (65 * broad, 75 * broad), LIVER, power=2.4, angle=-0.08)
        left = _dome(z, 108, 200, 158)
        canvas.blob((0, -44), (58 * left, 28 * left), LIVER, angle=0.16)
        gallbladder = _dome(z, 76, 116, 94)
        canvas.blob((-42, -34), (13 * gallbladder, 19 * gallbladder), WATER + 6, angle=-0.4)
        if 112 < z < 190:
            canvas.blob((-14, -38), (1.6, 26), FAT, angle=0.25)
        for x, y, radius in self._liver_vessels.between(z - 1.0, z + 1.0):
            u, v = (x + 62) / (65 * broad), (y + 2) / (75 * broad)
            if u * u + v * v < 0.85:
                canvas.blob((x, y), (radius + 0.8, radius + 0.8), VEIN + 12, edge=1.6)

    def _ribs(self, canvas: Canvas, z: float) -> None:
        width, depth, fat = self._shape(z)
        for number in range(12):
            spine_z = 404 - 21.5 * number
            fall = 52 + 82 * min(1.0, number / 6)
            along = (spine_z - z) / fall
            reach = 0.9 if number < 9 else 0.62 if number < 11 else 0.4
            if not 0 < along < reach:
                continue
            grow = 0.52 + 0.48 * math.sin(min(1.0, (number + 1.6) / 6.5) * math.pi / 2)
            half_width, half_depth = (
                min(135 * grow, width - fat - 6),
                min(95 * (0.7 + 0.3 * grow), depth - fat + 1),
            )
            turn = 0.2 + along * 2.62
            for side in (-1, 1):
                x, y = side * half_width * math.sin(turn), 2 + half_depth * math.cos(turn)
                tangent = math.atan2(-half_depth * math.sin(turn), side * half_width * math.cos(turn))
                length = 7.5 + 7.0 * (1 - math.sin(turn))
                if along > 0.8 * reach and number < 10:
                    canvas.blob((x, y), (length, 4.8), CARTILAGE, angle=tangent)
                else:
                    canvas.shell((x, y), (length, 4.6), CORTEX, MARROW, 1.5, angle=tangent)
        if 196 < z < 344:
            broad = 15 + 9 * _ramp(z, 305, 338)
            canvas.shell((0, 19 - depth), (broad, 6.8), CORTEX - 160, MARROW - 60, 1.6, power=2.6)

    def _spine(self, canvas: Canvas, z: float) -> None:
        pitch = 31.0 - 9.0 * _ramp(z, 60, 360)
        level = (z - 6) / pitch
        phase = level % 1.0
        thin = 1 - 0.34 * _ramp(z, 120, 390)
        y = 58 + 5 * math.sin(z / 400 * math.pi * 1.2)
        body = 1 - 0.10 * math.sin(phase / 0.76 * math.pi) if phase < 0.76 else 1.0
        radii = (24.5 * thin * body, 18.5 * thin * body)
        canal = y + 18.5 * thin + 8.5
        # Paraspinal muscles, the column's bed.
        for side in (-1, 1):
            canvas.blob((side * 27, canal + 6), (25 - 4 * _ramp(z, 150, 380), 17), MUSCLE, angle=side * 0.15)
            canvas.blob((side * 27, canal + 4), (20, 1.1), FAT + 30, angle=side * 0.5, strength=0.5)
        if phase < 0.70:
            plate = phase < 0.07 or phase > 0.63
            canvas.shell((0, y), radii, CORTEX - 120, 480.0 if plate else MARROW, 1.7, power=2.3)
            canvas.blob((0, y + 16 * thin), (5, 4), MARROW - 90, edge=2.0)
        else:
            canvas.blob((0, y), radii, 88, power=2.3)
            canvas.blob((0, y + 1), (radii[0] * 0.6, radii[1] * 0.55), 68, edge=3.0)
        # The arch: pedicles high on a body, laminae and spinous process below, facets at the disc.
        canvas.blob((0, canal), (13.5 * thin + 2, 11.5 * thin + 2), FAT + 40)
        pedicle = 0.30 < phase < 0.62
        for side in (-1, 1):
            if pedicle:
                canvas.shell((side * 14.5 * thin, canal - 4), (4.6, 10), CORTEX, MARROW + 60, 1.6)
            if 0.36 < phase < 0.60:
                canvas.shell(
                    (side * 33 * thin, canal + 2), (20 * thin, 4.2), CORTEX, MARROW, 1.5, angle=side * 0.28
                )
            if phase > 0.62 or phase < 0.10:
                canvas.shell(
                    (side * 17 * thin, canal + 4), (7.4, 6.8), CORTEX, MARROW + 80, 1.6, angle=side * 0.7
                )
                canvas.blob((side * 17 * thin, canal + 4), (6.4, 0.7), 60, angle=side * 1.2, strength=0.8)
            if phase < 0.42:
                canvas.shell((side * 9, canal + 12), (12, 3.6), CORTEX, MARROW, 1.4, angle=-side * 0.75)
        canvas.blob((0, canal), (11.0 * thin + 1, 9.2 * thin + 1), WATER + 10)
        canvas.blob((0, canal), (6.0, 4.8), 42, edge=2.0)
        if phase < 0.5:
            length = 15 * (1 - abs(phase - 0.2) / 0.36) if phase < 0.5 else 0.0
            room = self._shape(z)[1] - 6.0 - canal - 10.0
            length = min(length, room / 2)
            canvas.shell((0, canal + 10 + length), (3.6, max(1.0, length)), CORTEX, MARROW, 1.3)

    def _shoulders(self, canvas: Canvas, z: float) -> None:
        blade = _dome(z, 236, 384, 330)
        width = self._shape(z)[0]
        for side in (-1, 1):
            if blade:
                x, angle = side * (104 + 6 * _ramp(z, 300, 380)), -side * (0.8 - 0.15 * _ramp(z, 300, 380))
                canvas.blob((x, 66), (34 * blade, 15 * blade), MUSCLE, angle=angle)
                canvas.shell((x, 67), (27 * blade, 3.2), CORTEX, MARROW + 40, 1.3, angle=angle)
                if z > 320:
                    canvas.shell((side * 116, 68), (3.2, 13 * blade), CORTEX, MARROW, 1.3, angle=side * 0.8)
            clavicle = _dome(z, 338, 386, 362)
            if clavicle:
                x = side * (26 + (z - 338) * 1.5)
                canvas.shell(
                    (x, -64 + (z - 338) * 0.35), (24 * clavicle, 6), CORTEX, MARROW, 1.6, angle=side * 0.45
                )
            humerus = _dome(z, 352, 436, 396)
            if humerus:
                x = side * (width - 32)
                canvas.blob((x, 10), (36 * humerus, 40 * humerus), MUSCLE)
                canvas.shell((x, 10), (24 * humerus, 24 * humerus), CORTEX - 120, MARROW, 1.8)
