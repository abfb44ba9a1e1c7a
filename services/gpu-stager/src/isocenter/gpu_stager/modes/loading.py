"""A staged stack into memory: on the device where there is one, always saying which way the bytes took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from isocenter.common.errors import IntegrityError, IsocenterError, Permanent
from isocenter.gpu_stager.manifest import Stack
from isocenter.gpu_stager.modes import device as gpu
from isocenter.gpu_stager.modes import host
from isocenter.gpu_stager.modes.verdict import Mode, Verdict

_SLOWER: Final = {
    Mode.GDS_NVFS: Mode.KVIKIO_COMPAT,
    Mode.GDS_P2PDMA: Mode.KVIKIO_COMPAT,
    Mode.KVIKIO_COMPAT: Mode.POSIX_PINNED,
    Mode.POSIX_PINNED: Mode.NUMPY,
}


class WrongTarget(Permanent):
    """`out` has another shape or type than what is loaded into it."""

    code = "wrong-target"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Outcome of a load.

    Attributes:
        array: of the stack's shape and dtype; cupy's on a device, else numpy's.
        mode: the way that the bytes took.
        bytes, seconds: how many, and how long.
        device: `cuda:<n>` or `cpu`.
        reason: why it is not the mode that the probe found; empty where it is.
    """

    array: Any
    mode: Mode
    bytes: int
    seconds: float
    device: str
    reason: str = ""


class Loader:
    """Loads stacks by the mode of a verdict; what fails on the way is replaced by the next slower one.

    Args:
        verdict: of this node.
        device: index of the GPU.
        carriers: for tests: makes the carrier of a mode.
    """

    def __init__(
        self,
        verdict: Verdict,
        *,
        device: int = 0,
        carriers: Callable[[Mode], gpu.Carrier] = gpu.carrier,
    ) -> None:
        self.verdict = verdict
        self._device = device
        self._carriers = carriers
        self._made: dict[Mode, gpu.Carrier] = {}
        self._unusable: dict[Mode, str] = {}

    def load(
        self,
        folder: Path,
        stack: Stack,
        *,
        start: int = 0,
        stop: int | None = None,
        out: Any = None,
        verify: bool = False,
    ) -> Loaded:
        """Slices [start, stop) of a stack, by default all.

        Args:
            folder: of the entry.
            stack: of the entry.
            start: first slice.
            stop: slice after the last.
            out: an array to fill: a destination that is kept costs no page faults.
            verify: hash every block and compare with the manifest; whole stacks only.

        Raises:
            WrongTarget
            NotFound: the entry is gone: its lease ran out.
            IntegrityError: the bytes are not what was staged.
            StoreUnavailable: the disk fails.
        """
        begin, end, _ = slice(start, stop).indices(stack.shape[0])
        shape = (max(0, end - begin), *stack.shape[1:])
        if out is not None and (tuple(out.shape) != shape or np.dtype(out.dtype) != np.dtype(stack.dtype)):
            raise WrongTarget("the array to fill has another shape or type")
        path, offset = folder / stack.data, begin * stack.frame_bytes
        started = time.perf_counter()
        mode, reason = self.verdict.mode, ""
        if isinstance(out, np.ndarray):
            mode = Mode.NUMPY  # whoever brings host memory wants it filled
        while mode is not Mode.NUMPY:
            try:
                carrier = self._carrier(mode)
                array = carrier.empty(shape, stack.dtype, self._device) if out is None else out
                carrier.read(path, array, offset, self._device)
                break
            except IsocenterError:
                raise
            except Exception as error:  # noqa: BLE001 - a driver's failure may be of any kind
                reason = f"{mode}: {type(error).__name__}"
                if not _out_of_memory(error):
                    self._unusable[mode] = reason
                if out is not None:
                    raise WrongTarget(f"the array to fill cannot be filled ({reason})") from None
                mode = Mode.NUMPY if _out_of_memory(error) else _SLOWER[mode]
        if mode is Mode.NUMPY:
            array = _on_host(path, shape, stack.dtype, offset) if out is None else out
            if out is not None:
                host.read_into(path, host.as_bytes(out), offset)
        seconds = time.perf_counter() - started
        if verify and shape == stack.shape:
            verify_blocks(host.as_bytes(np.ascontiguousarray(gpu.to_host(array))), stack)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(stack.dtype).itemsize
        where = f"cuda:{self._device}" if mode.on_device else "cpu"
        return Loaded(array, mode, size, seconds, where, reason)

    def _carrier(self, mode: Mode) -> gpu.Carrier:
        if mode in self._unusable:
            raise RuntimeError(self._unusable[mode])
        if mode not in self._made:
            self._made[mode] = self._carriers(mode)
        return self._made[mode]


def _on_host(path: Path, shape: tuple[int, ...], dtype: str, offset: int) -> Any:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = host.aligned(size)
    host.read_into(path, memory.data, offset)
    return memory.view(np.dtype(dtype)).reshape(shape)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__


def verify_blocks(data: memoryview, stack: Stack) -> None:
    """Raises IntegrityError: a block is not what was staged."""
    size = stack.block_frames * stack.frame_bytes
    for number, expected in enumerate(stack.blocks):
        hasher = xxhash.xxh3_128()
        block = data[number * size : (number + 1) * size]
        hasher.update(block)
        if len(block) < size:
            hasher.update(bytes(size - len(block)))
        if hasher.hexdigest() != expected:
            raise IntegrityError("a block of a staged volume is not what was written", block=number)
