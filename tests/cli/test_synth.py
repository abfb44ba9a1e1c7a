from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest

from isocenter.cli.phantom import HEIGHT_MM, Torso
from isocenter.cli.synth import ct_slices, uid_for, write_ct
from isocenter.common.dicom.uids import is_valid_uid

SMALL = 128


@pytest.fixture(scope="module")
def volume() -> list[pydicom.FileDataset]:
    return list(ct_slices(slices=20, seed=1, size=SMALL))


def _hu(dataset: pydicom.FileDataset) -> np.ndarray:
    pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns)
    return pixels * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_ct(tmp_path / "a", slices=2, seed=7)]
    second = [path.read_bytes() for path in write_ct(tmp_path / "b", slices=2, seed=7)]
    other = [path.read_bytes() for path in write_ct(tmp_path / "c", slices=2, seed=8)]

    assert first == second
    assert first[0] != other[0]


def test_slices_are_one_series_with_geometry_that_adds_up(volume: list[pydicom.FileDataset]) -> None:
    """PS3.3 C.7.6.2: positions along the normal, as far apart as the slices are thick."""
    positions = [float(each.ImagePositionPatient[2]) for each in volume]

    assert len({each.SeriesInstanceUID for each in volume}) == 1
    assert len({each.SOPInstanceUID for each in volume}) == len(volume)
    assert np.allclose(np.diff(positions), float(volume[0].SliceThickness))
    assert np.isclose(positions[0] + positions[-1], 0)
    assert float(volume[0].PixelSpacing[0]) * SMALL == pytest.approx(400)


def test_uids_are_valid(volume: list[pydicom.FileDataset]) -> None:
    uids = {
        volume[0].StudyInstanceUID,
        volume[0].SeriesInstanceUID,
        *(each.SOPInstanceUID for each in volume),
    }

    assert all(is_valid_uid(str(uid)) for uid in uids)
    assert uid_for(1, "study") == volume[0].StudyInstanceUID


def test_values_are_those_of_a_torso() -> None:
    """Air outside; in the chest much lung, some bone and blood with contrast; in the abdomen no lung.

    The couch below is left out: its foam is as thin as lung.
    """
    torso = Torso(1, 256)
    chest, abdomen = torso.slice_at(230.0)[:190], torso.slice_at(60.0)[:190]

    def share(hu: np.ndarray, low: int, high: int) -> float:
        return float(np.mean((hu >= low) & (hu < high)))

    assert -1000 == pytest.approx(float(np.median(chest[:20])), abs=15)
    assert 0.08 < share(chest, -920, -780) < 0.4
    assert share(abdomen, -920, -780) < 0.02
    assert 0.005 < share(chest, 300, 1500) < 0.08
    assert 0.01 < share(chest, 180, 320)
    assert 0.1 < share(abdomen, -130, -70)


def test_the_spine_is_a_row_of_vertebrae() -> None:
    """Along z, bone and disc alternate where the vertebral bodies are."""
    torso = Torso(1, 128)
    column = []
    for z in np.arange(20.0, 220.0, 4.0):
        middle = torso.slice_at(float(z))[74:90, 60:68]
        column.append(float(np.median(middle)) > 150)
    changes = sum(a != b for a, b in pairwise(column))

    assert 8 <= changes <= 20


def test_no_slice_is_empty() -> None:
    torso = Torso(3, 64)

    assert all(np.mean(torso.slice_at(float(z)) > -200) > 0.1 for z in np.arange(1.0, HEIGHT_MM, 25.0))


def test_written_files_read_back(tmp_path: Path) -> None:
    (path,) = write_ct(tmp_path, slices=1, seed=2)

    dataset = pydicom.dcmread(path)

    assert dataset.pixel_array.shape == (512, 512)
    assert -1024 <= _hu(dataset).min() < -900
    assert "Phantom" in str(dataset.PatientName)
