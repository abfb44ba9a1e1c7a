"""Which slices make a volume, in which order, and where they are in the patient."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, generate_uid

from isocenter.common.errors import IntegrityError
from isocenter.gpu_stager.manifest import Entry
from isocenter.gpu_stager.pixels.facts import RT_DOSE, WHOLE_SLIDE, NotStageable
from isocenter.gpu_stager.testing import Site, ct, part10, set_pixels, volume_of

PLANE = ("ImagePositionPatient", "ImageOrientationPatient")
LINE = ("RescaleSlope", "RescaleIntercept")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = await Site.open(tmp_path)
    yield site
    await site.close()


async def staged(site: Site, datasets: list[FileDataset]) -> tuple[Path, Entry]:
    return await site.stage(*part10(datasets))


async def test_slices_stand_along_the_normal_whatever_they_are_numbered(site: Site) -> None:
    datasets = ct(9)
    numbers = list(range(9))
    random.Random(4).shuffle(numbers)
    for dataset, number in zip(datasets, numbers, strict=True):
        dataset.InstanceNumber = number + 1
    random.Random(5).shuffle(datasets)
    folder, entry = await staged(site, datasets)
    ordered = sorted(datasets, key=lambda one: float(one.ImagePositionPatient[2]))
    np.testing.assert_array_equal(volume_of(folder, entry), np.stack([each.pixel_array for each in ordered]))
    [stack] = entry.stacks
    assert "geometry" == stack.geometry.order
    assert (0.7, 0.8, 2.5) == stack.geometry.spacing
    assert stack.geometry.uniform
    keys = [entry.sources[source].instance_key for source, _ in stack.frames]
    assert [site.keys.instance_key(one.SOPInstanceUID) for one in ordered] == keys


async def test_the_affine_takes_every_voxel_to_its_place_in_the_patient(site: Site) -> None:
    """An oblique volume: each index through the affine is the point that PS3.3 C.7.6.2.1.1 gives, in RAS."""
    row, column = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])
    normal = np.cross(row, column)

    def oblique(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient = [*row, *column]
        dataset.ImagePositionPatient = list(np.array([10.0, -20.0, 30.0]) + 3.0 * index * normal)

    datasets = ct(6, change=oblique)
    _, entry = await staged(site, datasets)
    affine = np.array(entry.stacks[0].geometry.affine)
    for k, dataset in enumerate(datasets):
        for i, j in [(0, 0), (5, 0), (0, 7), (13, 11)]:
            position = np.array(dataset.ImagePositionPatient, float)
            lps = position + row * 0.8 * i + column * 0.7 * j
            np.testing.assert_allclose(affine @ [i, j, k, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-6)


async def test_a_tilted_gantry_shears_the_affine(site: Site) -> None:
    def tilted(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [-100.0, -120.0 + 0.5 * index, 10 + 2.5 * index]

    _, entry = await staged(site, ct(5, change=tilted))
    affine = np.array(entry.stacks[0].geometry.affine)
    np.testing.assert_allclose(affine[:3, 2], [0.0, -0.5, 2.5], atol=1e-9)


async def test_missing_and_doubled_slices_are_told(site: Site) -> None:
    datasets = ct(10)
    del datasets[6]
    twin = ct(1, seed=9)[0]
    twin.ImagePositionPatient = datasets[2].ImagePositionPatient
    twin.InstanceNumber = 77
    _, entry = await staged(site, [*datasets, twin])
    [stack] = entry.stacks
    assert (10, 64, 64) == stack.shape
    assert not stack.geometry.uniform
    assert (6,) == stack.geometry.gaps
    assert (2,) == stack.geometry.duplicates
    assert 2.5 == stack.geometry.spacing[2]


async def test_time_points_become_volumes_of_their_own(site: Site) -> None:
    """Four slices, three times each."""

    def phased(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [0.0, 0.0, 5.0 * (index % 4)]

    datasets = ct(12, change=phased)
    folder, entry = await staged(site, datasets)
    assert [(4, 64, 64)] * 3 == [stack.shape for stack in entry.stacks]
    for turn in range(3):
        expected = np.stack([one.pixel_array for one in datasets[4 * turn : 4 * turn + 4]])
        np.testing.assert_array_equal(volume_of(folder, entry, turn), expected)
        assert () == entry.stacks[turn].geometry.duplicates


async def test_a_localizer_does_not_spoil_the_volume(site: Site) -> None:
    def localizer(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    scout = ct(1, shape=(128, 32), seed=3, change=localizer)
    datasets = ct(5)
    folder, entry = await staged(site, [*scout, *datasets])
    assert [(5, 64, 64), (1, 128, 32)] == [stack.shape for stack in entry.stacks]
    np.testing.assert_array_equal(volume_of(folder, entry), np.stack([one.pixel_array for one in datasets]))


async def test_cosines_with_other_last_digits_are_of_one_volume(site: Site) -> None:
    def wobbling(dataset: Dataset, index: int) -> None:
        small = 0.125 + (-1) ** index * 1e-6
        large = float(np.sqrt(1 - small**2))
        dataset.ImageOrientationPatient = [large, small, 0, -small, large, 0]

    _, entry = await staged(site, ct(6, change=wobbling))
    assert [(6, 64, 64)] == [stack.shape for stack in entry.stacks]


async def test_slope_and_intercept_of_each_slice_are_kept(site: Site) -> None:
    def pet(dataset: Dataset, index: int) -> None:
        dataset.Modality = "PT"
        dataset.Units = "BQML"
        dataset.RescaleSlope = f"{1.5 + index}"
        dataset.RescaleIntercept = "0"
        del dataset.RescaleType

    _, entry = await staged(site, ct(3, change=pet))
    rescale = entry.stacks[0].rescale
    assert (1.5, 2.5, 3.5) == rescale.slope
    assert "BQML" == rescale.units
    assert "PT" == entry.modality


async def test_pictures_without_planes_keep_the_order_of_the_series(site: Site) -> None:
    def flat(dataset: Dataset, index: int) -> None:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.PhotometricInterpretation = "MONOCHROME1"

    datasets = ct(4, change=flat)
    folder, entry = await staged(site, datasets)
    [stack] = entry.stacks
    assert "instance-number" == stack.geometry.order
    assert stack.geometry.affine is None
    assert "MONOCHROME1" == stack.photometric_interpretation
    np.testing.assert_array_equal(volume_of(folder, entry), np.stack([one.pixel_array for one in datasets]))


def enhanced(frames: int) -> FileDataset:
    """Positions, rescale and windows in functional groups, frames out of order."""
    [dataset] = ct(1)
    random_ = np.random.default_rng(8)
    set_pixels(dataset, random_.integers(-500, 500, (frames, 32, 48)).astype("<i2"), bits_stored=16)
    for keyword in (*PLANE, "PixelSpacing", *LINE):
        delattr(dataset, keyword)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices = [0.5, 0.6], 4.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in range(frames):
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, 4.0 * (frames - index)]
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 2 + index, -10, "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [transform]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


async def test_functional_groups_of_each_frame_are_read(site: Site) -> None:
    dataset = enhanced(7)
    folder, entry = await staged(site, [dataset])
    [stack] = entry.stacks
    np.testing.assert_array_equal(volume_of(folder, entry), dataset.pixel_array[::-1])
    assert tuple((0, number) for number in range(7, 0, -1)) == stack.frames
    assert (0.5, 0.6, 4.0) == stack.geometry.spacing
    assert tuple(float(2 + index) for index in range(6, -1, -1)) == stack.rescale.slope
    assert (-10.0,) * 7 == stack.rescale.intercept


async def test_a_dose_grid_has_its_offsets_and_its_scaling(site: Site) -> None:
    [dataset] = ct(1)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(RT_DOSE)
    dataset.Modality = "RTDOSE"
    set_pixels(dataset, np.arange(3 * 8 * 9, dtype="<u4").reshape(3, 8, 9))
    dataset.GridFrameOffsetVector = [0.0, 3.0, 6.0]
    dataset.DoseGridScaling, dataset.DoseUnits = "0.001", "GY"
    _, entry = await staged(site, [dataset])
    [stack] = entry.stacks
    assert (10.0, 13.0, 16.0) == stack.geometry.positions
    assert (0.001,) == stack.rescale.slope
    assert "GY" == stack.rescale.units


def slide(level: int, tile: int = 16, size: int = 64, flavour: str = "VOLUME") -> FileDataset:
    [dataset] = ct(1, seed=level)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(WHOLE_SLIDE)
    uid = generate_uid(entropy_srcs=[flavour, str(level)])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    for keyword in (*PLANE, *LINE):
        delattr(dataset, keyword)
    dataset.Modality, dataset.ImageType = "SM", ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    side = size >> level
    count = (side // tile) ** 2
    pixels = np.random.default_rng(level).integers(0, 255, (count, tile, tile, 3)).astype(np.uint8)
    set_pixels(dataset, pixels)
    dataset.TotalPixelMatrixColumns = dataset.TotalPixelMatrixRows = side
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.TotalPixelMatrixFocalPlanes = 1
    return dataset


async def test_tiles_of_a_slide_know_their_place_and_level(site: Site) -> None:
    levels = [slide(1), slide(0), slide(2)]
    folder, entry = await staged(site, levels)
    assert [(16, 16, 16, 3), (4, 16, 16, 3), (1, 16, 16, 3)] == [stack.shape for stack in entry.stacks]
    assert [0, 1, 2] == [stack.tiles.level for stack in entry.stacks if stack.tiles is not None]
    tiles = entry.stacks[0].tiles
    assert tiles is not None
    whole = np.zeros((tiles.rows, tiles.columns, 3), np.uint8)
    for data, row, column in zip(volume_of(folder, entry), tiles.row, tiles.column, strict=True):
        whole[row : row + 16, column : column + 16] = data
    frames = levels[1].pixel_array.reshape(4, 4, 16, 16, 3)
    np.testing.assert_array_equal(whole, frames.transpose(0, 2, 1, 3, 4).reshape(64, 64, 3))


async def test_the_photograph_of_a_label_is_never_staged(site: Site) -> None:
    """Its handwriting names somebody."""
    label = slide(0, flavour="LABEL")
    _, entry = await staged(site, [slide(1), label])
    key = site.keys.instance_key(label.SOPInstanceUID)
    assert {key: "photograph-of-the-label"} == entry.left_out
    assert [(4, 16, 16, 3)] == [stack.shape for stack in entry.stacks]


async def test_a_series_without_pixels_is_refused_with_the_reason(site: Site) -> None:
    def report(dataset: Dataset, index: int) -> None:
        del dataset[0x7FE00010]

    with pytest.raises(NotStageable, match="no-pixels"):
        await staged(site, ct(2, change=report))


async def test_a_series_that_changed_is_another_entry(site: Site) -> None:
    _, first = await staged(site, ct(3))
    _, second = await staged(site, [*ct(1, seed=7)])
    assert first.series_key == second.series_key
    assert first.name != second.name
    assert first.name.startswith(first.series_key)


async def test_a_manifest_names_nobody(site: Site) -> None:
    folder, entry = await staged(site, ct(3))
    text = (folder / "manifest.json").read_text() + "".join(
        path.read_text() for path in folder.rglob("zarr.json")
    )
    for secret in ("DOE", "JANE", "P1", "1.2.826"):
        assert secret not in text
    assert entry == Entry.from_json(entry.to_json())


OTHER_VERSION = b'{"format": "isocenter.staged-series", "version": 99}'


@pytest.mark.parametrize("damage", [b"{}", b"[]", b"nonsense", OTHER_VERSION])
def test_what_is_no_manifest_is_refused(damage: bytes) -> None:
    with pytest.raises(IntegrityError):
        Entry.from_json(damage)
