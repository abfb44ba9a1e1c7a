"""The DICOM files that ship inside the pydicom package, with the UIDs that their headers have."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file


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


def sample(name: str) -> Sample:
    """By file name; never downloads."""
    path = Path(str(get_testdata_file(name, download=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the files are odd on purpose
        header = pydicom.dcmread(path, stop_before_pixels=True)
        return Sample(
            path,
            str(header.StudyInstanceUID),
            str(header.SeriesInstanceUID),
            str(header.SOPInstanceUID),
        )
