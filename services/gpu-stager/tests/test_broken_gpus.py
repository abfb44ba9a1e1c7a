"""Broken GPU environments cost a start some seconds, and no load anything but speed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.common.errors import IntegrityError, NotFound
from isocenter.gpu_stager.manifest import Geometry, Stack
from isocenter.gpu_stager.modes.loading import Loader, WrongTarget
from isocenter.gpu_stager.modes.probe import judged, probe
from isocenter.gpu_stager.modes.verdict import Mode, Verdict

CUPY = """
import numpy as _np
__version__ = "14.2"
class cuda:
    @staticmethod
    def is_available(): return True
    class runtime:
        @staticmethod
        def getDeviceCount(): return 1
        @staticmethod
        def getDeviceProperties(index):
            return {"uuid": b"\\x01" * 16, "name": b"H200", "totalGlobalMem": 1 << 37}
        @staticmethod
        def driverGetVersion(): return 13000
        @staticmethod
        def runtimeGetVersion(): return 13000
uint32 = _np.uint32
asarray = _np.asarray
asnumpy = _np.asarray
arange = _np.arange
empty_like = _np.empty_like
"""
KVIKIO = """
import os
__version__ = "26.10"
class CuFile:
    def __init__(self, path, mode): self.file = open(path, mode + "b", buffering=0)
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, array): return self.file.write(array.tobytes())
    def read(self, array): return self.file.readinto(memoryview(array).cast("B"))
"""
HANGS = "import time\nwhile True: time.sleep(1)\n"
ENVIRONMENTS = {
    "no GPU packages": ({}, Mode.NUMPY, "cupy"),
    "a driver that is too old": (
        {"cupy.py": CUPY.replace("is_available(): return True", "is_available(): return False")},
        Mode.NUMPY,
        "device",
    ),
    "kvikio without its libraries": (
        {"cupy.py": CUPY, "kvikio/__init__.py": "raise RuntimeError('libcufile is missing')"},
        Mode.POSIX_PINNED,
        "kvikio: RuntimeError",
    ),
    "a driver that hangs": ({"cupy.py": HANGS}, Mode.NUMPY, "cupy: no answer"),
    "kvikio that hangs": (
        {"cupy.py": CUPY, "kvikio/__init__.py": HANGS},
        Mode.POSIX_PINNED,
        "kvikio: no answer",
    ),
    "a driver that kills": (
        {"cupy.py": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"},
        Mode.NUMPY,
        "cupy: it ended with status -11",
    ),
    "all but GPUDirect": (
        {"cupy.py": CUPY, "kvikio/__init__.py": KVIKIO, "kvikio/defaults.py": ""},
        Mode.KVIKIO_COMPAT,
        "gds-present",
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_probe_ends_in_time_and_names_what_stopped_it(tmp_path: Path, name: str) -> None:
    files, mode, reason = ENVIRONMENTS[name]
    packages = tmp_path / "packages"
    for path, text in files.items():
        target = packages / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]),
    }
    started = time.monotonic()
    verdict = probe(tmp_path, limit_seconds=6, environment=environment)
    assert time.monotonic() - started < 20
    assert mode is verdict.mode
    assert any(reason in each for each in verdict.reasons), verdict.reasons
    assert (mode is not Mode.NUMPY) == bool(verdict.devices)
    assert verdict == Verdict.from_json(verdict.to_json())
    assert not list(tmp_path.glob(".probe-*"))


def test_a_python_that_does_not_start_is_no_reason_to_fail(tmp_path: Path) -> None:
    verdict = probe(tmp_path, python="/nonexistent/python")
    assert Mode.NUMPY is verdict.mode
    assert verdict.reasons


@pytest.mark.parametrize("way", ["gds-nvfs", "gds-p2pdma"])
def test_gpudirect_is_believed_only_when_bytes_came_back(way: str) -> None:
    device: dict[str, Any] = {"index": 0, "uuid": "ab", "name": "H200", "total_bytes": 1}
    steps = [
        {"step": "cupy", "ok": True},
        {"step": "device", "ok": True, "devices": [device]},
        {"step": "copy", "ok": True},
        {"step": "kvikio", "ok": True},
        {"step": "compat", "ok": True},
        {"step": "gds-present", "ok": True, "way": way},
        {"step": "gds", "ok": False, "begun": True},
    ]
    assert Mode.KVIKIO_COMPAT is judged(steps, "no answer within 15 s", 15).mode
    assert way == judged([*steps, {"step": "gds", "ok": True}], "", 3).mode.value


def stack_of(folder: Path, volume: np.ndarray[Any, Any], block_frames: int) -> Stack:
    """A file as the writer leaves it: the volume, zeros up to a whole block, something behind it."""
    data = volume.tobytes()
    size = volume[0].nbytes * block_frames
    padded = data + bytes(-len(data) % size)
    (folder / "data").write_bytes(padded + b"index")
    blocks = [padded[start : start + size] for start in range(0, len(padded), size)]
    return Stack(
        path="0",
        data="data",
        shape=volume.shape,
        dtype=volume.dtype.str,
        block_frames=block_frames,
        blocks=tuple(map(xxhash.xxh3_128_hexdigest, blocks)),
        bits_stored=16,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        frames=(),
        geometry=Geometry("geometry"),
    )


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["<u2", "<i2", "|u1", "<f4"]),
    block=st.integers(1, 5),
    cut=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
@settings(max_examples=80, deadline=None)
def test_a_load_is_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    dtype: str,
    block: int,
    cut: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("entry")
    volume = np.random.default_rng(sum(shape)).integers(0, 200, shape).astype(dtype)
    stack = stack_of(folder, volume, block)
    loader = Loader(Verdict(Mode.NUMPY))
    loaded = loader.load(folder, stack, verify=True)
    np.testing.assert_array_equal(loaded.array, volume)
    assert (volume.nbytes, "cpu", "") == (loaded.bytes, loaded.device, loaded.reason)
    assert 0 == loaded.array.ctypes.data % 4096
    start, stop = sorted(cut)
    np.testing.assert_array_equal(
        loader.load(folder, stack, start=start, stop=stop).array, volume[start:stop]
    )


def test_what_is_not_the_file_that_was_staged_is_refused(tmp_path: Path) -> None:
    volume = np.arange(6 * 16 * 16, dtype="<u2").reshape(6, 16, 16)
    stack = stack_of(tmp_path, volume, 4)
    loader = Loader(Verdict(Mode.NUMPY))
    good = (tmp_path / "data").read_bytes()
    (tmp_path / "data").write_bytes(good[:2000] + bytes([good[2000] ^ 1]) + good[2001:])
    with pytest.raises(IntegrityError, match="block"):
        loader.load(tmp_path, stack, verify=True)
    (tmp_path / "data").write_bytes(good[:500])
    with pytest.raises(IntegrityError, match="shorter"):
        loader.load(tmp_path, stack)
    (tmp_path / "data").unlink()
    with pytest.raises(NotFound):
        loader.load(tmp_path, stack)


@pytest.mark.parametrize("out", [np.empty((6, 16, 15), "<u2"), np.empty((6, 16, 16), "<i2")])
def test_an_array_of_another_kind_is_not_filled(tmp_path: Path, out: np.ndarray[Any, Any]) -> None:
    stack = stack_of(tmp_path, np.zeros((6, 16, 16), "<u2"), 6)
    with pytest.raises(WrongTarget):
        Loader(Verdict(Mode.NUMPY)).load(tmp_path, stack, out=out)


class Fake:
    """A carrier on host memory, which may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.tries = 0

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return np.empty(shape, dtype)

    def read(self, path: Path, array: Any, offset: int, device: int) -> None:
        self.tries += 1
        if self.error is not None:
            raise self.error
        with path.open("rb") as file:
            file.seek(offset)
            array[...] = np.frombuffer(file.read(array.nbytes), array.dtype).reshape(array.shape)


class OutOfMemoryError(Exception):
    """As cupy names it."""


def test_a_faster_way_that_fails_is_replaced_and_not_tried_again(tmp_path: Path) -> None:
    volume = np.arange(2 * 8 * 8, dtype="<u2").reshape(2, 8, 8)
    stack = stack_of(tmp_path, volume, 2)
    ways = {
        Mode.GDS_NVFS: Fake(RuntimeError("cuFile")),
        Mode.KVIKIO_COMPAT: Fake(OSError()),
        Mode.POSIX_PINNED: Fake(),
    }
    loader = Loader(Verdict(Mode.GDS_NVFS), carriers=ways.__getitem__)
    for _ in range(3):
        loaded = loader.load(tmp_path, stack)
        np.testing.assert_array_equal(loaded.array, volume)
        assert Mode.POSIX_PINNED is loaded.mode
        assert loaded.reason
    assert [1, 1, 3] == [fake.tries for fake in ways.values()]


def test_a_full_device_hands_back_host_memory_and_is_tried_again(tmp_path: Path) -> None:
    volume = np.arange(2 * 8 * 8, dtype="<u2").reshape(2, 8, 8)
    stack = stack_of(tmp_path, volume, 2)
    full = Fake(OutOfMemoryError())
    loader = Loader(Verdict(Mode.KVIKIO_COMPAT), carriers=lambda mode: full)
    loaded = loader.load(tmp_path, stack)
    assert (Mode.NUMPY, "cpu") == (loaded.mode, loaded.device)
    assert "OutOfMemory" in loaded.reason
    full.error = None
    assert Mode.KVIKIO_COMPAT is loader.load(tmp_path, stack).mode
