"""The GPU's side of a load: cupy and kvikio, imported where they are used and nowhere else.

A `Carrier` brings a file's bytes into an array on a device. What it raises makes the loader fall back to the
next one: a load never fails because a faster way is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from isocenter.gpu_stager.modes import host
from isocenter.gpu_stager.modes.environment import TASK_BYTES, threads
from isocenter.gpu_stager.modes.verdict import Mode

PINNED_PIECE = 16 << 20
"""Of each of the two pinned buffers that take turns."""


class Carrier(Protocol):
    """Brings bytes onto a device."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """A C-contiguous device array."""
        ...

    def read(self, path: Path, array: Any, offset: int, device: int) -> None:
        """Fills it with the file's bytes from `offset` on."""
        ...


class Pinned:
    """Our own: one piece is read while the one before is on its way to the device."""

    def __init__(self) -> None:
        import cupy  # noqa: PLC0415

        self._cupy = cupy
        self._buffers: list[Any] = []

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        with self._cupy.cuda.Device(device):
            return self._cupy.empty(shape, np.dtype(dtype))

    def read(self, path: Path, array: Any, offset: int, device: int) -> None:
        cupy = self._cupy
        with cupy.cuda.Device(device):
            flat = array.reshape(-1).view(np.uint8)
            size = int(flat.size)
            streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
            pinned = [self._pinned(min(PINNED_PIECE, size)) for _ in range(2)]
            for turn, start in enumerate(range(0, size, PINNED_PIECE)):
                stop = min(size, start + PINNED_PIECE)
                stream, buffer = streams[turn % 2], pinned[turn % 2]
                stream.synchronize()  # the piece that was in this buffer has arrived
                host.read_into(path, memoryview(buffer)[: stop - start], offset + start, threads=1)
                flat[start:stop].set(buffer[: stop - start], stream=stream)
            for stream in streams:
                stream.synchronize()

    def _pinned(self, size: int) -> Any:
        memory = self._cupy.cuda.alloc_pinned_memory(size)
        return np.frombuffer(memory, np.uint8, size)


class Kvikio:
    """kvikio, in the mode that the probe has seen to work."""

    def __init__(self, mode: Mode) -> None:
        os.environ["KVIKIO_COMPAT_MODE"] = "ON" if mode is Mode.KVIKIO_COMPAT else "OFF"
        import cupy  # noqa: PLC0415
        import kvikio  # noqa: PLC0415
        import kvikio.defaults  # noqa: PLC0415

        self._cupy = cupy
        self._kvikio = kvikio
        kvikio.defaults.set({"num_threads": threads(), "task_size": TASK_BYTES})

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        with self._cupy.cuda.Device(device):
            return self._cupy.empty(shape, np.dtype(dtype))

    def read(self, path: Path, array: Any, offset: int, device: int) -> None:
        os.close(host.open_file(path))  # says what is missing; kvikio raises RuntimeError for everything
        with self._cupy.cuda.Device(device), self._kvikio.CuFile(str(path), "r") as file:
            future = file.pread(array, int(array.nbytes), offset)  # never past the end: that raises
            if future.get() != array.nbytes:
                raise RuntimeError("a short read")


def carrier(mode: Mode) -> Carrier:
    """Raises whatever cupy and kvikio raise when they cannot be used."""
    makers: dict[Mode, Callable[[], Carrier]] = {
        Mode.POSIX_PINNED: Pinned,
        Mode.KVIKIO_COMPAT: lambda: Kvikio(mode),
        Mode.GDS_NVFS: lambda: Kvikio(mode),
        Mode.GDS_P2PDMA: lambda: Kvikio(mode),
    }
    return makers[mode]()


def to_host(array: Any) -> Any:
    """For checksums: the bytes of a device array."""
    return array.get() if hasattr(array, "get") else array
