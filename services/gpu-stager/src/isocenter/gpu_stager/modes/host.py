"""Files into host memory, as fast as the disk and the page cache give them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from isocenter.common.errors import IntegrityError, NotFound, StoreUnavailable

PIECE: Final = 16 << 20
PAGE: Final = 4096
THREADS: Final = 4


def aligned(size: int) -> npt.NDArray[np.uint8]:
    """Host memory that begins at a page."""
    whole = np.empty(size + PAGE, np.uint8)
    skip = -whole.ctypes.data % PAGE
    return whole[skip : skip + size]


def open_file(path: Path) -> int:
    """Raises NotFound, StoreUnavailable."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound("a staged volume is gone") from None
    except OSError as error:
        raise StoreUnavailable(f"a staged volume cannot be opened: {error.strerror}") from None


def read_into(path: Path, target: memoryview, offset: int = 0, *, threads: int = THREADS) -> None:
    """Fills `target` with the file's bytes from `offset` on, piece by piece, several at a time.

    Raises:
        NotFound: there is no such file.
        IntegrityError: it is shorter.
        StoreUnavailable: the disk fails.
    """
    descriptor = open_file(path)
    try:
        pieces = range(0, len(target), PIECE)
        if len(pieces) < 2 or threads < 2:
            for start in pieces:
                _fill(descriptor, target[start : start + PIECE], offset + start)
            return
        with ThreadPoolExecutor(min(threads, len(pieces))) as pool:
            done = [
                pool.submit(_fill, descriptor, target[start : start + PIECE], offset + start)
                for start in pieces
            ]
            for each in done:
                each.result()
    finally:
        os.close(descriptor)


def _fill(descriptor: int, target: memoryview, offset: int) -> None:
    while target:
        try:
            read = os.preadv(descriptor, [target], offset)
        except OSError as error:
            raise StoreUnavailable(f"a staged volume cannot be read: {error.strerror}") from None
        if not read:
            raise IntegrityError("a staged volume is shorter than its manifest says")
        target, offset = target[read:], offset + read


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data
