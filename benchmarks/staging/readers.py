"""Ways to get a series into an array: what users do today, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import zarr
from pydicom import dcmread
from pydicom.encaps import get_frame

from isocenter.gpu_stager.manifest import Entry
from isocenter.gpu_stager.modes.loading import Loader
from isocenter.gpu_stager.modes.verdict import Mode, Verdict

Array = npt.NDArray[Any]
Read = Callable[[], Array]


def with_pydicom(paths: Sequence[Path]) -> Array:
    """File by file, as tutorials have it: `dcmread(path).pixel_array`, stacked."""
    return np.stack([dcmread(path).pixel_array for path in paths])


def tuned_htj2k(paths: Sequence[Path], threads: int = 2) -> Array:
    """Headers by pydicom, frames by imagecodecs, straight into the block, on several threads."""
    first = dcmread(paths[0])
    block = np.empty((len(paths), first.Rows, first.Columns), "<u2")

    def one(number: int) -> None:
        frame = get_frame(dcmread(paths[number]).PixelData, 0, number_of_frames=1)
        block[number] = imagecodecs.htj2k_decode(frame)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(len(paths))))
    return block


def ours(folder: Path, entry: Entry, *, kept: bool, verify: bool = False) -> Read:
    """The stager's own reader; `kept`: into an array that is used again."""
    loader, stack = Loader(Verdict(Mode.NUMPY)), entry.stacks[0]
    out = np.zeros(stack.shape, stack.dtype) if kept else None
    return lambda: loader.load(folder, stack, out=out, verify=verify).array


def with_zarr(folder: Path) -> Array:
    array = zarr.open_group(folder, mode="r")["0"]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def with_fromfile(data: Path, entry: Entry) -> Array:
    stack = entry.stacks[0]
    count = int(np.prod(stack.shape))
    return np.fromfile(data, stack.dtype, count).reshape(stack.shape)
