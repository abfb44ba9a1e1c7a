"""The synthesised CT volume as DICOM files: same seed, same bytes.

CT Image Storage, Explicit VR Little Endian, 512 x 512 signed 16 bits, 2 mm slices, rescaled to Hounsfield
units. The patient is fictional and says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from isocenter.cli.canvas import FIELD_OF_VIEW_MM
from isocenter.cli.phantom import HEIGHT_MM, Torso

SIZE = 512
RESCALE_INTERCEPT = -1024
IMPLEMENTATION_CLASS_UID = UID("2.25.197042178064930287911713340187325218201")
_NAMESPACE = uuid.UUID("5a0c7c55-7f0b-4a4c-8d5e-1f1c0c17e7e5")


def write_ct(
    directory: Path,
    *,
    slices: int = 200,
    seed: int = 1,
    on_slice: Callable[[int], None] | None = None,
) -> list[Path]:
    """Writes the volume, lowest slice first, and returns the paths in that order.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(ct_slices(slices=slices, seed=seed), start=1):
        path = directory / f"ct-{number:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
        if on_slice is not None:
            on_slice(number)
    return paths


def ct_slices(*, slices: int = 200, seed: int = 1, size: int = SIZE) -> Iterator[FileDataset]:
    """The volume, one data set per slice, spread evenly over the phantom's height."""
    torso = Torso(seed, size)
    study = _study(seed)
    spacing = HEIGHT_MM / slices
    pixel = FIELD_OF_VIEW_MM / size
    for number in range(1, slices + 1):
        z = (number - 0.5) * spacing
        pixels = torso.slice_at(z) - RESCALE_INTERCEPT
        yield _slice(study, number, z, spacing, pixel, size, pixels.astype("<i2").tobytes(), seed)


def uid_for(seed: int, *parts: str | int) -> str:
    """A UID below 2.25 (PS3.5 B.2) that is the same for the same seed and parts."""
    name = "/".join(map(str, (seed, *parts)))
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def _study(seed: int) -> Dataset:
    """What every slice shares."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260105"
    ds.StudyTime = ds.SeriesTime = "093000"
    ds.AccessionNumber = f"DEMO{seed:04d}"
    ds.Modality = "CT"
    ds.Manufacturer = "Isocenter"
    ds.ManufacturerModelName = "synthesised phantom"
    ds.InstitutionName = "Example Hospital"
    ds.ReferringPhysicianName = "Referrer^Fictional"
    ds.StudyDescription = "CT chest and abdomen (synthesised)"
    ds.SeriesDescription = "Axial 2.0 soft tissue"
    ds.PatientName = f"Phantom^Ada^{seed}"
    ds.PatientID = f"PHANTOM-{seed:04d}"
    ds.IssuerOfPatientID = "EXAMPLE"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "O"
    ds.PatientAge = "056Y"
    ds.BodyPartExamined = "CHEST"
    ds.ContrastBolusAgent = "SYNTHETIC"
    ds.SliceThickness = f"{HEIGHT_MM / 200:.1f}"
    ds.KVP = "120"
    ds.ConvolutionKernel = "SYNTH"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = uid_for(seed, "study")
    ds.SeriesInstanceUID = uid_for(seed, "series")
    ds.StudyID = f"{seed}"
    ds.SeriesNumber = 2
    ds.FrameOfReferenceUID = uid_for(seed, "frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = 16
    ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    ds.WindowCenter = ["40", "-500"]
    ds.WindowWidth = ["400", "1500"]
    ds.WindowCenterWidthExplanation = ["SOFT TISSUE", "LUNG"]
    ds.RescaleIntercept = str(RESCALE_INTERCEPT)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    return ds


def _slice(
    study: Dataset, number: int, z: float, spacing: float, pixel: float, size: int, pixels: bytes, seed: int
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid_for(seed, "instance", number))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = "ISOCENTER_SYNTH"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.update(study)
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.InstanceNumber = number
    ds.AcquisitionNumber = 1
    ds.ContentTime = f"{93000 + number // 60 * 100 + number % 60:06d}"
    ds.AcquisitionTime = ds.ContentTime
    ds.SliceThickness = f"{spacing:.6g}"
    # Centre of the first pixel; the phantom's coordinates are the patient's (PS3.3 C.7.6.2.1.1).
    corner = pixel / 2 - FIELD_OF_VIEW_MM / 2
    ds.ImagePositionPatient = [f"{corner:.6g}", f"{corner:.6g}", f"{z - HEIGHT_MM / 2:.6g}"]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.SliceLocation = f"{z - HEIGHT_MM / 2:.6g}"
    ds.Rows = ds.Columns = size
    ds.PixelSpacing = [f"{pixel:.6g}", f"{pixel:.6g}"]
    ds.PixelData = pixels
    return ds
