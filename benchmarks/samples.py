"""The DICOM files that ship inside the pydicom package, each copied under UIDs of its own.

Several of them are one image in several encodings under one SOP Instance UID. A platform that keeps the
first and flags the rest as conflicts, as it must, would make tests lean on each other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid


@dataclass(frozen=True, slots=True)
class Sample:
    path: Path
    study: str
    series: str
    instance: str

    @property
    def resource(self) -> str:
        """Path of the instance below a DICOMweb origin."""
        return f"/dicom-web/studies/{self.study}/series/{self.series}/instances/{self.instance}"


def read(name: str) -> FileDataset:
    """By file name; never downloads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the files are odd on purpose
        return pydicom.dcmread(str(get_testdata_file(name, download=False)))


def sample(name: str, directory: Path, *, study: str | None = None) -> Sample:
    """A copy in `directory` with new UIDs and everything else as it was, in the same encoding."""
    data = read(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        data.StudyInstanceUID, data.SeriesInstanceUID = study or generate_uid(), generate_uid()
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        path = directory / name
        data.save_as(path)
    return Sample(path, str(data.StudyInstanceUID), str(data.SeriesInstanceUID), str(data.SOPInstanceUID))
