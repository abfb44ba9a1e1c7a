"""The measurements, B1 to B15, and the four rates that they are held against."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.gpu.bench import Bench, NotMeasured, digest
from benchmarks.staging import readers, series
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless

from isocenter.gpu_stager.modes import device, host
from isocenter.gpu_stager.modes.environment import TASK_BYTES, threads
from isocenter.gpu_stager.modes.verdict import Mode

GB: Final = 1e9
SAMPLE_BYTES: Final = 146_600_000
"""One sample of MLPerf Storage's unet3d."""


def base_rates(bench: Bench) -> dict[str, float]:
    """GB/s: disk (O_DIRECT), memcpy, and with a GPU pinned and pageable copies to it."""
    folder, stack = bench.volume()
    size = stack.volume_bytes
    found = {"disk": size / GB / _direct(folder / stack.data, size)}
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    found["memcpy"] = size / GB / bench.timed(lambda: np.copyto(target, source))["best"]
    if bench.gpu:
        cupy = bench.need_gpu()
        there = cupy.empty(size, np.uint8)
        pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
        found["pinned"] = size / GB / bench.timed(lambda: there.set(pinned))["best"]
        found["pageable"] = size / GB / bench.timed(lambda: there.set(source))["best"]
    return found


def _direct(path: Path, size: int) -> float:
    """Seconds of a sequential read past the page cache."""
    memory = mmap.mmap(-1, 16 << 20)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        raise NotMeasured("the file system does not do O_DIRECT") from None
    try:
        started = time.perf_counter()
        for offset in range(0, size // len(memory) * len(memory), len(memory)):
            os.preadv(descriptor, [memory], offset)
        return (time.perf_counter() - started) * size / max(1, size // len(memory) * len(memory))
    finally:
        os.close(descriptor)


def _rate(bench: Bench, mode: Mode, *, cold: bool = False) -> float:
    folder, stack = bench.volume()
    loader = bench.loader(mode)
    loaded = loader.load(folder, stack, verify=True)
    if loaded.mode is not mode:
        raise NotMeasured(f"{mode} fell back: {loaded.reason}")
    out = loaded.array
    took = bench.timed(lambda: loader.load(folder, stack, out=out), (folder / stack.data,), cold=cold)
    return stack.volume_bytes / GB / took["median"]


def _kvikio(bench: Bench) -> Mode:
    if not bench.gpu or bench.verdict.mode is Mode.POSIX_PINNED:
        raise NotMeasured("kvikio cannot be used here: " + "; ".join(bench.verdict.reasons))
    return Mode.KVIKIO_COMPAT


def b1(bench: Bench) -> dict[str, Any]:
    """Tuned kvikio load, hot: at least 0.6 of min(pinned, memcpy / 2)."""
    rate = _rate(bench, _kvikio(bench))
    bound = min(bench.base["pinned"], bench.base["memcpy"] / 2)
    return {"GB/s": rate, "of_bound": rate / bound, "target": 0.6, "threads": threads(), "task": TASK_BYTES}


def b2(bench: Bench) -> dict[str, Any]:
    """The same against kvikio as it comes, one thread: at least 3 times, hot."""
    tuned = _rate(bench, _kvikio(bench))
    import kvikio.defaults  # noqa: PLC0415 - where there is a GPU

    with kvikio.defaults.set({"num_threads": 1, "task_size": 4 << 20}):
        folder, stack = bench.volume()
        loader = bench.loader(Mode.KVIKIO_COMPAT)
        out = loader.load(folder, stack).array
        kvikio.defaults.set({"num_threads": 1})
        took = bench.timed(lambda: loader.load(folder, stack, out=out))["median"]
    kvikio.defaults.set({"num_threads": threads()})
    return {"ratio": tuned / (stack.volume_bytes / GB / took), "target": 3}


def b3(bench: Bench) -> dict[str, Any]:
    """Cold: at least 0.9 of min(disk, pinned)."""
    rate = _rate(bench, bench.verdict.mode, cold=True)
    bound = min(bench.base["disk"], bench.base.get("pinned", np.inf))
    return {"GB/s": rate, "of_bound": rate / bound, "target": 0.9}


def b4(bench: Bench) -> dict[str, Any]:
    """Against np.fromfile and a pageable copy, hot: at least 2 times."""
    cupy = bench.need_gpu()
    folder, stack = bench.volume()
    path, count = folder / stack.data, int(np.prod(stack.shape))
    took = bench.timed(lambda: cupy.asarray(np.fromfile(path, stack.dtype, count)))["median"]
    return {"ratio": _rate(bench, bench.verdict.mode) / (stack.volume_bytes / GB / took), "target": 2}


def b5(bench: Bench) -> dict[str, Any]:
    """Kvikio against our own pinned double buffer, hot: told, not judged."""
    return {"ratio": _rate(bench, _kvikio(bench)) / _rate(bench, Mode.POSIX_PINNED)}


def _to_device(bench: Bench, array: Any) -> Any:
    if not bench.gpu:
        return array
    return bench.need_gpu().asarray(array)


def _against_files(
    bench: Bench, syntax: Any, read: Callable[[Sequence[Path]], Any], slices: int
) -> dict[str, Any]:
    name = "plain" if syntax is None else syntax.keyword
    folder = bench.scratch / f"files-{name}"
    if not folder.exists():
        series.written(bench.scratch, folder.name, series.all_objects(slices, syntax))
    paths = tuple(sorted(folder.iterdir()))
    staged, stack = bench.volume("compared", slices)
    loader = bench.loader(bench.verdict.mode)
    found: dict[str, Any] = {"slices": slices}
    for state in ("cold", "hot"):
        files = bench.timed(lambda: _to_device(bench, read(paths)), paths, cold=state == "cold")["median"]
        ours = bench.timed(lambda: loader.load(staged, stack), (staged / stack.data,), cold=state == "cold")[
            "median"
        ]
        found[f"{state}_ratio"] = files / ours
    return found


def b6(bench: Bench) -> dict[str, Any]:
    """Against uncompressed files by pydicom, then a copy: at least 4 times cold, 8 hot."""
    return _against_files(bench, None, readers.with_pydicom, bench.slices) | {"target": {"cold": 4, "hot": 8}}


def b7(bench: Bench) -> dict[str, Any]:
    """Against MONAI's reader to the GPU: at least 2 times hot."""
    bench.need_gpu()
    try:
        from monai.data import PydicomReader  # noqa: PLC0415 - where it is installed
    except ImportError:
        raise NotMeasured("MONAI is not installed") from None
    reader = PydicomReader(to_gpu=True)

    def read(paths: Sequence[Path]) -> Any:
        return reader.get_data(reader.read([str(path) for path in paths]))[0]

    return _against_files(bench, None, read, bench.slices) | {"target": {"hot": 2}}


def b8(bench: Bench) -> dict[str, Any]:
    """Against HTJ2K and JPEG 2000 by pydicom, then a copy: at least 20 and 80 times cold."""
    few = max(4, bench.slices // 8)
    return {
        "htj2k": _against_files(bench, HTJ2KLossless, readers.with_pydicom, few),
        "j2k": _against_files(bench, JPEG2000Lossless, readers.with_pydicom, max(2, few // 8)),
        "target": {"htj2k": 20, "j2k": 80},
    }


def b9(bench: Bench) -> dict[str, Any]:
    """Volumes of 146.6 MB one after the other: at least 2.96 GiB/s for the whole time."""
    slices = round(SAMPLE_BYTES / (512 * 512 * 2))
    staged = [bench.volume(f"sample{number}", slices) for number in range(8)]
    loader = bench.loader(bench.verdict.mode)
    moved, turns, started = 0, 0, time.perf_counter()
    while time.perf_counter() - started < bench.seconds:
        folder, stack = staged[turns % len(staged)]
        moved += loader.load(folder, stack).bytes
        turns += 1
    bench.wait()
    took = time.perf_counter() - started
    return {"GiB/s": moved / took / 2**30, "seconds": took, "hot_set_bytes": 8 * SAMPLE_BYTES, "target": 2.96}


def b10(bench: Bench) -> dict[str, Any]:
    """A hit in VRAM."""
    raise NotMeasured("there is no VRAM tier yet")


def b11(bench: Bench) -> dict[str, Any]:
    """Decoding on the GPU."""
    raise NotMeasured("there is no decoding on the GPU yet")


def b12(bench: Bench) -> dict[str, Any]:
    """Tiles of 512 x 512, one read each, against tifffile: at least 4 times."""
    try:
        import tifffile  # noqa: PLC0415 - where it is installed
    except ImportError:
        raise NotMeasured("tifffile is not installed") from None
    folder, stack = bench.volume("tiles", min(256, bench.slices))
    loader = bench.loader(bench.verdict.mode)
    pixels = loader.load(folder, stack, out=np.empty(stack.shape, stack.dtype)).array
    path = bench.scratch / "tiles.tif"
    mosaic = pixels.reshape(-1, 512)
    tifffile.imwrite(path, mosaic, tile=(512, 512), photometric="minisblack")
    theirs = bench.timed(lambda: _to_device(bench, tifffile.imread(path)))["median"]
    ours = bench.timed(lambda: loader.load(folder, stack))["median"]
    return {"ratio": theirs / ours, "target": 4}


def b13(bench: Bench) -> dict[str, Any]:
    """The same bytes at offset 0 and at 352: what alignment is for."""
    folder, stack = bench.volume()
    data = (folder / stack.data).read_bytes()[: stack.volume_bytes]
    shifted = bench.scratch / "shifted"
    shifted.write_bytes(bytes(352) + data)
    read: Callable[[Path, int], None]
    if bench.verdict.mode is Mode.NUMPY:
        read = partial(_host_read, host.aligned(len(data)).data)
    else:
        carrier = device.carrier(bench.verdict.mode)
        read = partial(_device_read, carrier, carrier.empty(stack.shape, stack.dtype, 0))
    aligned = bench.timed(partial(read, folder / stack.data, 0))["median"]
    unaligned = bench.timed(partial(read, shifted, 352))["median"]
    return {"unaligned_over_aligned": unaligned / aligned}


def _host_read(out: memoryview, path: Path, offset: int) -> None:
    host.read_into(path, out, offset)


def _device_read(carrier: device.Carrier, array: Any, path: Path, offset: int) -> None:
    carrier.read(path, array, offset, 0)


def b14(bench: Bench) -> dict[str, Any]:
    """CPU seconds for each GB loaded, by mode."""
    folder, stack = bench.volume()
    found = {}
    for mode in bench.ways():
        loader = bench.loader(mode)
        out = loader.load(folder, stack).array
        took = bench.timed(partial(loader.load, folder, stack, out=out))
        found[mode.value] = took["cpu"] / (stack.volume_bytes / GB)
    return {"cpu_s_per_GB": found}


def b15(bench: Bench) -> dict[str, Any]:
    """More than the device holds: no error surfaces, and no array that is held changes."""
    cupy = bench.need_gpu()
    folder, stack = bench.volume()
    loader = bench.loader(bench.verdict.mode)
    expected = digest(loader.load(folder, stack).array)
    wanted = int(2 * cupy.cuda.Device(0).mem_info[0] / stack.volume_bytes)
    held: list[Any] = []
    on_host = 0
    for _ in range(min(wanted, 1000)):
        loaded = loader.load(folder, stack)
        if loaded.device == "cpu":
            on_host += 1
        else:
            held.append(loaded.array)
    changed = sum(digest(array) != expected for array in held)
    loads = len(held) + on_host
    held.clear()
    cupy.get_default_memory_pool().free_all_blocks()
    if changed:
        raise AssertionError(f"{changed} arrays changed")
    return {"loads": loads, "handed_back_on_host": on_host, "changed": changed}


ALL: Final[dict[str, Callable[[Bench], dict[str, Any]]]] = {
    f"B{number}": measure
    for number, measure in enumerate(
        (b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15), start=1
    )
}
