"""What measurements share: timing, caches, volumes, and the ways of this node."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from benchmarks.staging.series import drop

from isocenter.gpu_stager.layout.spec import ArraySpec
from isocenter.gpu_stager.layout.writer import VolumeWriter
from isocenter.gpu_stager.manifest import Geometry, Stack
from isocenter.gpu_stager.modes.loading import Loader
from isocenter.gpu_stager.modes.verdict import Mode, Verdict


class NotMeasured(Exception):
    """Why a measurement was left out: something is missing, or a comparison would not be fair."""


@dataclass
class Bench:
    """The node and the sizes.

    Attributes:
        scratch: on the disk to measure.
        verdict: of this node's probe.
        slices: of a volume of 512 x 512 and 16 bits.
        rounds: of each timing; best and median are kept.
        seconds: of a sustained run.
    """

    scratch: Path
    verdict: Verdict
    slices: int
    rounds: int
    seconds: float
    base: dict[str, float] = field(default_factory=dict)
    """GB/s: `disk`, `pinned`, `pageable`, `memcpy`."""

    @property
    def gpu(self) -> bool:
        return self.verdict.mode.on_device

    def need_gpu(self) -> Any:
        """The cupy module. Raises NotMeasured."""
        if not self.gpu:
            raise NotMeasured("no usable GPU: " + "; ".join(self.verdict.reasons))
        import cupy  # noqa: PLC0415 - where there is a GPU

        return cupy

    def ways(self) -> list[Mode]:
        """The modes that this node can do, the probe's first."""
        order = [Mode.GDS_NVFS, Mode.GDS_P2PDMA, Mode.KVIKIO_COMPAT, Mode.POSIX_PINNED, Mode.NUMPY]
        found = order[order.index(self.verdict.mode) :]
        return [mode for mode in found if mode is self.verdict.mode or not mode.value.startswith("gds")]

    def loader(self, mode: Mode) -> Loader:
        return Loader(Verdict(mode))

    def volume(self, name: str = "volume", slices: int | None = None) -> tuple[Path, Stack]:
        """A staged stack of noise, made once."""
        slices = slices or self.slices
        folder = self.scratch / f"{name}-{slices}"
        spec = ArraySpec((slices, 512, 512), "<u2")
        if not folder.exists():
            folder.mkdir()
            random = np.random.default_rng(1)
            with VolumeWriter(folder, "0", spec) as writer:
                for _ in range(slices):
                    writer.add(random.integers(0, 4096, (512, 512), dtype=np.uint16))
                writer.finish()
            (folder / "blocks").write_text("\n".join(writer.blocks))
        data = next(folder.rglob("c")) / "0" / "0" / "0"
        stack = Stack(
            path="0",
            data=str(data.relative_to(folder)),
            shape=spec.shape,
            dtype=spec.dtype,
            block_frames=spec.block_frames,
            blocks=tuple((folder / "blocks").read_text().split()),
            bits_stored=12,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
            frames=(),
            geometry=Geometry("geometry"),
        )
        return folder, stack

    def timed(
        self, call: Callable[[], Any], files: tuple[Path, ...] = (), *, cold: bool = False
    ) -> dict[str, float]:
        """Seconds, best and median, and CPU seconds of this process, after one run that is not counted."""
        call()
        seconds, cpu = [], []
        for _ in range(self.rounds):
            if cold:
                drop(files)
            before = time.process_time()
            started = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - before)
        return {"best": min(seconds), "median": statistics.median(seconds), "cpu": statistics.median(cpu)}

    def wait(self) -> None:
        """What was handed to the device is done."""
        if self.gpu:
            import cupy  # noqa: PLC0415 - where there is a GPU

            cupy.cuda.get_current_stream().synchronize()


def digest(array: Any) -> str:
    """Of an array's bytes, wherever it is."""
    host = array.get() if hasattr(array, "get") else array
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(host).tobytes())
