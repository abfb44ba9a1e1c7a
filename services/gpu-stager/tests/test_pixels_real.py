"""Every real file that ships with pydicom: staged pixels are pydicom's."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_files
from pydicom.dataset import FileDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, generate_uid

from isocenter.common.errors import IsocenterError
from isocenter.gpu_stager.pixels.codecs import SUPPORTED
from isocenter.gpu_stager.pixels.decoding import NATIVE
from isocenter.gpu_stager.testing import Site, part10, volume_of

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
NOT_OURS = {
    "MR_truncated.dcm": "fewer pixels than promised: no frame index",
    "JPEG2000-embedded-sequence-delimiter.dcm": "pydicom does not decode it either",
    "badVR.dcm": "pydicom cannot read its attributes",
}
ROUNDED = {JPEGExtended12Bit: 1}
"""No other decoder of 12-bit lossy JPEG is exact: the inverse DCT is not normative to the last bit."""


def readable(path: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = dcmread(path, stop_before_pixels=False)
            syntax = dataset.file_meta.TransferSyntaxUID
        except Exception:  # noqa: BLE001 - broken on purpose
            return False
        known = syntax in NATIVE or syntax in SUPPORTED
        return known and any(keyword in dataset for keyword in PIXELS) and "SOPInstanceUID" in dataset


FILES = [
    path
    for path in sorted(map(str, get_testdata_files()))
    if Path(path).name not in NOT_OURS and readable(path)
]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = await Site.open(tmp_path)
    yield site
    await site.close()


def test_there_are_files_of_every_kind() -> None:
    assert len(FILES) > 140
    found = {str(read_file_meta_info(path).TransferSyntaxUID) for path in FILES}
    assert {
        "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.5",
    } <= found  # fmt: skip


def completed(dataset: FileDataset) -> FileDataset:
    """The UIDs without which no instance is stored."""
    for keyword in UIDS:
        if not dataset.get(keyword) or not str(dataset.get(keyword)).replace(".", "").isdigit():
            setattr(dataset, keyword, generate_uid(entropy_srcs=[keyword]))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def stored(path: str, dataset: FileDataset) -> bytes:
    """The file itself, where it has its UIDs: pydicom does not write all that it reads."""
    before = dcmread(path, stop_before_pixels=True)
    whole = all(dataset.get(name) == before.get(name) for name in UIDS)
    return Path(path).read_bytes() if whole else part10([dataset])[0]


@pytest.mark.filterwarnings("ignore")  # pydicom warns of these files, and rightly
@pytest.mark.parametrize("path", FILES, ids=lambda path: Path(path).name)
async def test_staged_pixels_are_pydicoms(site: Site, path: str) -> None:
    dataset = completed(dcmread(path))
    syntax = dataset.file_meta.TransferSyntaxUID
    options: dict[str, Any] = {"decoding_plugin": "pillow"} if syntax == JPEGBaseline8Bit else {}
    dataset.pixel_array_options(**options)
    expected = dataset.pixel_array
    data = stored(path, dataset)
    try:
        folder, entry = await site.stage(data)
    except IsocenterError as error:
        raise AssertionError(f"{path}: {error}") from error
    got = np.concatenate([volume_of(folder, entry, number) for number in range(len(entry.stacks))])
    order = np.argsort([number for stack in entry.stacks for _, number in stack.frames])
    got = got[order].reshape(expected.shape)
    assert expected.dtype.newbyteorder("<") == got.dtype.newbyteorder("<")
    assert np.abs(expected.astype(np.float64) - got.astype(np.float64)).max() <= ROUNDED.get(syntax, 0)
