"""Arithmetic of a staged array: blocks that begin at multiples of 4 KiB, whatever the shape of a frame."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Final

import numpy as np

PAGE: Final = 4096
"""GPUDirect Storage moves whole pages of 4 KiB; what is not aligned goes through the CPU."""
BLOCK_BYTES: Final = 8 << 20
"""What a block aims at: the unit of checksums, and of what an outside Zarr reader must fetch at least."""
LAYOUT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array of frames as it lies in its file.

    Attributes:
        shape: (frames, rows, columns) or (frames, rows, columns, samples).
        dtype: numpy's notation, little endian: `<i2`, `|u1`, ...
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def frame_bytes(self) -> int:
        return prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def volume_bytes(self) -> int:
        return self.shape[0] * self.frame_bytes

    @property
    def block_frames(self) -> int:
        """Frames in a block: so many that it is a multiple of 4 KiB and about 8 MiB long.

        Padding a block to 4 KiB is no valid Zarr, so its depth is what aligns it. A shape that would need a
        block of more than there is has a single block, which begins at 0 all the same.
        """
        frames = self.shape[0]
        step = PAGE // gcd(PAGE, self.frame_bytes)
        if step >= frames:
            return frames
        wanted = max(1, BLOCK_BYTES // (step * self.frame_bytes)) * step
        blocks = -(-frames // wanted)
        return -(-frames // (blocks * step)) * step  # evenly, so that little of the last one is padding

    @property
    def blocks(self) -> int:
        return -(-self.shape[0] // self.block_frames)

    @property
    def block_bytes(self) -> int:
        return self.block_frames * self.frame_bytes

    @property
    def index_bytes(self) -> int:
        """Offset and length of each block, and a CRC-32C (Zarr v3, sharding codec)."""
        return 16 * self.blocks + 4

    @property
    def file_bytes(self) -> int:
        """Every block is whole: zeros fill the last one."""
        return self.blocks * self.block_bytes + self.index_bytes
