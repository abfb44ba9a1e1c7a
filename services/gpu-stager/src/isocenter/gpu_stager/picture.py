"""A staged volume as a picture, so that a person sees that it is right."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from isocenter.gpu_stager.manifest import Stack

Picture = npt.NDArray[np.uint8]
"""(rows, columns, 3)."""
CELL: Final = 256
"""Pixels of a slice's longer side."""
_DARK: Final = 16
_FAINT: Final = 0.5
"""Per cent at both ends that a window leaves out where the instances bring none."""


def montage(volume: npt.NDArray[Any], stack: Stack, *, count: int = 12, across: int = 4) -> Picture:
    """Slices spread evenly over the volume, the middle one among them, as a reader would see them: rescaled,
    windowed, in true proportion, MONOCHROME1 inverted, palettes applied.

    Args:
        volume: stored values, as `client.Volume.array` has them, in host memory.
        stack: what is in it.
        count: of slices at most.
        across: slices side by side.
    """
    slices = volume.shape[0]
    count = min(count, slices)
    middle = slices // 2
    chosen = sorted({middle, *np.linspace(0, slices - 1, count).round().astype(int).tolist()})
    while len(chosen) > count:
        chosen.remove(chosen[1] if chosen[1] != middle else chosen[-2])
    window = _window(volume, stack)
    cells = [_fitted(shown(volume[index], stack, index, window), stack) for index in chosen]
    height, width = max(cell.shape[0] for cell in cells), max(cell.shape[1] for cell in cells)
    down = -(-len(cells) // across)
    across = min(across, len(cells))
    picture = np.full((down * (height + 4) - 4, across * (width + 4) - 4, 3), _DARK, np.uint8)
    for number, cell in enumerate(cells):
        top, left = (number // across) * (height + 4), (number % across) * (width + 4)
        picture[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return picture


def shown(
    frame: npt.NDArray[Any], stack: Stack, index: int, window: tuple[float, float] | None = None
) -> Picture:
    """One slice as a reader would see it: (rows, columns, 3)."""
    if frame.ndim == 3:
        shift = max(0, stack.bits_stored - 8)
        return (frame >> shift).astype(np.uint8)
    if stack.palette is not None:
        palette = stack.palette
        at = np.clip(frame.astype(np.int64) - palette.descriptor[1], 0, palette.descriptor[0] - 1)
        tables = np.stack([np.array(each) for each in (palette.red, palette.green, palette.blue)], axis=-1)
        return (tables[at] >> (8 if palette.descriptor[2] > 8 else 0)).astype(np.uint8)
    low, high = window or _window(frame[None], stack)
    values = _rescaled(frame, stack, index)
    grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    if stack.photometric_interpretation == "MONOCHROME1":
        grey = 1 - grey
    return np.repeat((grey * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def encode_png(picture: Picture) -> bytes:
    import imagecodecs  # noqa: PLC0415 - a process that draws nothing does without

    return bytes(imagecodecs.png_encode(picture))


def _rescaled(frame: npt.NDArray[Any], stack: Stack, index: int) -> npt.NDArray[np.float32]:
    line = stack.rescale
    at = index if len(line.slope) > 1 else 0
    return frame.astype(np.float32) * np.float32(line.slope[at]) + np.float32(line.intercept[at])


def _window(volume: npt.NDArray[Any], stack: Stack) -> tuple[float, float]:
    """Lowest and highest value shown: the window of the instances, else what most values lie between."""
    if stack.window is not None and stack.window[1] > 0:
        center, width = stack.window
        return center - width / 2, center + width / 2
    if volume.ndim > 3:
        return 0.0, 255.0
    step = max(1, volume.shape[0] // 8)
    sample = np.stack([_rescaled(volume[i], stack, i) for i in range(0, volume.shape[0], step)])
    low, high = np.percentile(sample, [_FAINT, 100 - _FAINT])
    return float(low), float(high)


def _fitted(picture: Picture, stack: Stack) -> Picture:
    """The longer side becomes `CELL` pixels; pixels that are no squares get their true proportion."""
    between_rows, between_columns, _ = stack.geometry.spacing
    tall = picture.shape[0] * (between_rows or 1.0)
    wide = picture.shape[1] * (between_columns or 1.0)
    scale = CELL / max(tall, wide)
    rows, columns = max(1, round(tall * scale)), max(1, round(wide * scale))
    down = np.minimum((np.arange(rows) + 0.5) * picture.shape[0] / rows, picture.shape[0] - 1).astype(int)
    right = np.minimum((np.arange(columns) + 0.5) * picture.shape[1] / columns, picture.shape[1] - 1)
    fitted: Picture = picture[down][:, right.astype(int)]
    return fitted
