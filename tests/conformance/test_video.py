"""Encapsulated video from those who send it: DCMTK and Orthanc. The bytes of the file are what is kept."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from benchmarks import peers, retrieve
from benchmarks.embedded import Embedded
from benchmarks.peers import Orthanc
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, VideoEndoscopicImageStorage, generate_uid

pytestmark = pytest.mark.peer

VIDEO = {
    "mpeg2-main": "1.2.840.10008.1.2.4.100",
    "mpeg2-high": "1.2.840.10008.1.2.4.101",
    "h264-4.1": "1.2.840.10008.1.2.4.102",
    "h264-bd": "1.2.840.10008.1.2.4.103",
    "h264-4.2-2d": "1.2.840.10008.1.2.4.104",
    "h264-4.2-3d": "1.2.840.10008.1.2.4.105",
    "h264-stereo": "1.2.840.10008.1.2.4.106",
    "hevc-main": "1.2.840.10008.1.2.4.107",
    "hevc-main-10": "1.2.840.10008.1.2.4.108",
}
"""Those that DCMTK 3.6.7 knows. The rest, and HTJ2K, are sent by pynetdicom in the tests of ingest."""

PROFILE = """
[[TransferSyntaxes]]
[Video]
TransferSyntax1 = {uid}
[[PresentationContexts]]
[Contexts]
PresentationContext1 = VideoEndoscopicImageStorage\\Video
[[Profiles]]
[Default]
PresentationContexts = Contexts
"""


@pytest.fixture(params=VIDEO)
def video(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileDataset, Path]:
    """An instance whose stream nobody will play, in one fragment as the standard wants it."""
    data = FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
    data.file_meta.TransferSyntaxUID = UID(VIDEO[request.param])
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VideoEndoscopicImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.PatientName, data.Modality = "VIDEO^TEST", "ES"
    data.Rows, data.Columns, data.SamplesPerPixel, data.NumberOfFrames = 1080, 1920, 3, 25
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PhotometricInterpretation, data.PlanarConfiguration = "YBR_PARTIAL_420", 0
    data.PixelData = encapsulate([struct.pack(">L", 0x1B3) * 100_000], has_bot=False)
    data["PixelData"].is_undefined_length = True
    path = tmp_path / "video.dcm"
    data.save_as(path, enforce_file_format=True)
    return data, path


def kept(platform: Embedded, data: FileDataset) -> bytes:
    path = (
        f"/dicom-web/studies/{data.StudyInstanceUID}/series/{data.SeriesInstanceUID}"
        f"/instances/{data.SOPInstanceUID}"
    )
    (part,) = platform.instances(path)
    return retrieve.data_set(part)


@pytest.mark.usefixtures("dcmtk")
def test_storescu(platform: Embedded, video: tuple[FileDataset, Path], tmp_path: Path) -> None:
    data, path = video
    profile = tmp_path / "storescu.cfg"
    profile.write_text(PROFILE.format(uid=data.file_meta.TransferSyntaxUID))
    done = peers.dcmtk(
        *("storescu", "-xf", profile, "Default", "-aec", platform.ae_title),
        *("127.0.0.1", str(platform.dicom_port), path),
    )
    assert 0 == done.returncode, done.stderr
    assert retrieve.data_set(path.read_bytes()) == kept(platform, data)


@pytest.mark.usefixtures("dcmtk")
def test_dcmsend(platform: Embedded, video: tuple[FileDataset, Path]) -> None:
    data, path = video
    done = peers.dcmtk(
        *("dcmsend", "--verbose", "--decompress-never", "-aec", platform.ae_title),
        *("127.0.0.1", str(platform.dicom_port), path),
    )
    assert "with status SUCCESS  : 1" in done.stdout + done.stderr
    assert retrieve.data_set(path.read_bytes()) == kept(platform, data)


def test_orthanc(platform: Embedded, orthanc: Orthanc, video: tuple[FileDataset, Path]) -> None:
    data, path = video
    identifier = orthanc.upload(path.read_bytes())
    answer = orthanc.client.post("/modalities/isocenter/store", json=[identifier])
    assert 200 == answer.status_code, answer.text
    assert 0 == answer.json()["FailedInstancesCount"]
    assert retrieve.data_set(path.read_bytes()) == kept(platform, data)
