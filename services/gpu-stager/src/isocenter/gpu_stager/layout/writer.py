"""Frames in, in order; an aligned volume with checksums comes out."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import xxhash

from isocenter.common.errors import IntegrityError, StoreFull, StoreUnavailable
from isocenter.gpu_stager.layout import zarr3
from isocenter.gpu_stager.layout.spec import ArraySpec

Array = npt.NDArray[np.generic]


class VolumeWriter:
    """Writes one array below an entry's folder. Blocking: call it in a thread.

    Memory holds one block. The file has its full length from the start, so that a full disk is known before
    the first byte is decoded.
    """

    def __init__(self, folder: Path, path: str, spec: ArraySpec) -> None:
        """Raises StoreFull, StoreUnavailable."""
        self.spec = spec
        self.data = zarr3.shard_path(path, spec)
        self.blocks: list[str] = []
        self._frames = 0
        self._block = np.zeros((spec.block_frames, *spec.shape[1:]), np.dtype(spec.dtype))
        self._filled = 0
        target = folder / self.data
        self._fd = -1
        try:
            target.parent.mkdir(parents=True)
            (folder / path / "zarr.json").write_bytes(zarr3.array_document(spec))
            self._fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._fd, 0, spec.file_bytes)
        except OSError as error:
            self.close()
            raise _trouble(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, frame: Array) -> None:
        """The next frame, of the array's shape and type.

        Raises:
            IntegrityError: it has another shape or type, or there are too many.
            StoreFull, StoreUnavailable
        """
        if self._frames >= self.spec.shape[0]:
            raise IntegrityError("more frames than were planned")
        if frame.shape != self.spec.shape[1:] or frame.dtype != self._block.dtype:
            raise IntegrityError("a frame has another shape or type than its stack")
        self._block[self._filled] = frame
        self._filled += 1
        self._frames += 1
        if self._filled == self.spec.block_frames:
            self._flush()

    def finish(self) -> None:
        """Writes what is left and the index, and syncs the data.

        Raises:
            IntegrityError: frames are missing.
            StoreFull, StoreUnavailable
        """
        if self._frames != self.spec.shape[0]:
            raise IntegrityError("fewer frames than were planned")
        if self._filled:
            self._block[self._filled :] = 0
            self._flush()
        self._write(zarr3.shard_index(self.spec), len(self.blocks) * self.spec.block_bytes)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise _trouble(error) from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _flush(self) -> None:
        data = self._block.data.cast("B")
        self._write(data, len(self.blocks) * self.spec.block_bytes)
        self.blocks.append(xxhash.xxh3_128_hexdigest(data))
        self._filled = 0

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._fd, view, offset)
            except OSError as error:
                raise _trouble(error) from None
            view, offset = view[written:], offset + written


def _trouble(error: OSError) -> StoreUnavailable:

    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull("the disk of staged volumes is full")
    return StoreUnavailable(f"the disk of staged volumes fails: {error.strerror}")
