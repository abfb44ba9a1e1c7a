"""The file that a GPU reads at offset 0 is a Zarr array for everybody else."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
import xxhash
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.common.errors import IntegrityError, StoreFull, StoreUnavailable
from isocenter.gpu_stager.layout import zarr3
from isocenter.gpu_stager.layout.spec import BLOCK_BYTES, PAGE, ArraySpec
from isocenter.gpu_stager.layout.writer import VolumeWriter

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70))
DTYPES = st.sampled_from(["|u1", "|i1", "<u2", "<i2", "<i4", "<f4", "<f8"])


def written(writer: VolumeWriter, frames: Iterable[npt.NDArray[np.generic]]) -> None:
    for frame in frames:
        writer.add(frame)
    writer.finish()


@given(data=st.binary(max_size=300))
def test_the_checksum_is_crc32c(data: bytes) -> None:
    assert google_crc32c.value(data) == zarr3.crc32c(data)


@given(shape=SHAPES, dtype=DTYPES, colour=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_zarr_reads_what_was_written_and_the_head_is_the_volume(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: str, colour: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("entry")
    shape = (*shape, 3) if colour else shape
    random = np.random.default_rng(seed)
    volume = random.integers(0, 100, shape).astype(dtype)
    volume[seed % shape[0]] = 0  # an empty block must be there, too
    spec = ArraySpec(shape, dtype)
    (folder / "zarr.json").write_bytes(zarr3.group_document())
    with VolumeWriter(folder, "0", spec) as writer:
        written(writer, volume)
    array = zarr.open_group(folder, mode="r")["0"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(np.asarray(array[:]), volume)
    raw = (folder / writer.data).read_bytes()
    assert spec.file_bytes == len(raw)
    assert volume.tobytes() == raw[: spec.volume_bytes]
    assert set(raw[spec.volume_bytes : -spec.index_bytes]) <= {0}
    blocks = [raw[i * spec.block_bytes : (i + 1) * spec.block_bytes] for i in range(spec.blocks)]
    assert [xxhash.xxh3_128_hexdigest(block) for block in blocks] == writer.blocks


@given(frames=st.integers(1, 3000), rows=st.integers(1, 3000), columns=st.integers(1, 3000), dtype=DTYPES)
@settings(max_examples=300)
def test_blocks_are_whole_pages_wherever_the_shape_allows(
    frames: int, rows: int, columns: int, dtype: str
) -> None:
    spec = ArraySpec((frames, rows, columns), dtype)
    assert spec.blocks == 1 or spec.block_bytes % PAGE == 0
    assert spec.blocks == 1 or spec.block_bytes <= max(2 * BLOCK_BYTES, 2 * PAGE * spec.frame_bytes)
    assert (spec.blocks - 1) * spec.block_frames < frames <= spec.blocks * spec.block_frames
    assert spec.file_bytes == spec.blocks * spec.block_bytes + 16 * spec.blocks + 4


@pytest.mark.parametrize(
    ("shape", "dtype", "depth"),
    [((512, 512, 512), "<u2", 16), ((300, 288, 288), "<u2", 50), ((5, 888, 733), "<u2", 5)],
)
def test_depths_that_the_design_names(shape: tuple[int, ...], dtype: str, depth: int) -> None:
    assert depth == ArraySpec(shape, dtype).block_frames


def test_an_index_names_every_block() -> None:
    spec = ArraySpec((64, 512, 512), "<i2")
    index = zarr3.shard_index(spec)
    pairs = struct.unpack(f"<{2 * spec.blocks}Q", index[:-4])
    assert [n * spec.block_bytes for n in range(spec.blocks)] == list(pairs[::2])
    assert {spec.block_bytes} == set(pairs[1::2])


@pytest.mark.parametrize("frames", [2, 4])
def test_frames_that_were_not_planned_are_refused(tmp_path: Path, frames: int) -> None:
    with VolumeWriter(tmp_path, "0", ArraySpec((3, 4, 4), "<i2")) as writer, pytest.raises(IntegrityError):
        written(writer, [np.zeros((4, 4), "<i2")] * frames)


@pytest.mark.parametrize("frame", [np.zeros((4, 5), "<i2"), np.zeros((4, 4), "<u2")])
def test_a_frame_of_another_kind_is_refused(tmp_path: Path, frame: npt.NDArray[np.generic]) -> None:
    with VolumeWriter(tmp_path, "0", ArraySpec((3, 4, 4), "<i2")) as writer, pytest.raises(IntegrityError):
        writer.add(frame)


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreUnavailable)])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fdatasync"])
def test_a_disk_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, error: type[Exception]
) -> None:
    def fails(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)

    def write() -> None:
        with VolumeWriter(tmp_path, "0", ArraySpec((1, 64, 64), "<i2")) as writer:
            written(writer, [np.zeros((64, 64), "<i2")])

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(error):
        write()
    assert before == len(list(Path("/proc/self/fd").iterdir()))
