"""dicomweb-client stores, searches and reads, with its own defaults."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from benchmarks.embedded import Embedded
from dicomweb_client.api import DICOMwebClient
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames
from pydicom.uid import generate_uid

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def client(platform: Embedded) -> DICOMwebClient:
    return DICOMwebClient(platform.dicom_web)


@pytest.fixture(scope="module")
def study(client: DICOMwebClient, platform: Embedded) -> list[FileDataset]:
    """Three instances in two series of one patient, stored over STOW-RS, and searchable now."""
    study_uid, ct_series, mr_series = generate_uid(), generate_uid(), generate_uid()
    instances = []
    for name, series_uid, number in (
        ("CT_small.dcm", ct_series, 1),
        ("CT_small.dcm", ct_series, 2),
        ("MR_small_jp2klossless.dcm", mr_series, 1),
    ):
        path = Path(str(get_testdata_file(name, download=False)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files hold values that today's pydicom warns about
            data = pydicom.dcmread(path)
            data.PatientName, data.PatientID = "Conformance^Case", "CONF-1"
            data.StudyInstanceUID, data.SeriesInstanceUID = study_uid, series_uid
            data.AccessionNumber, data.StudyDate = "ACC-CONF-1", "20240229"
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            data.InstanceNumber = number
        instances.append(data)
    answer = client.store_instances(instances)
    assert len(instances) == len(answer.ReferencedSOPSequence)
    _wait_for(lambda: len(client.search_for_instances(study_uid)) == len(instances))
    return instances


def _wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Indexing follows the acknowledgement; it is not part of it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not searchable in time"
        time.sleep(0.05)


def _values(found: dict[str, dict[str, list[object]]], tag: str) -> list[object]:
    return found[tag]["Value"]


@pytest.mark.parametrize(
    "filters",
    [
        {"PatientID": "CONF-1"},
        {"PatientName": "Conformance*"},
        {"AccessionNumber": "ACC-CONF-1"},
        {"StudyDate": "20240201-20240301", "PatientID": "CONF-1"},
        {"ModalitiesInStudy": "MR", "PatientID": "CONF-1"},
    ],
)
def test_a_study_is_found(client: DICOMwebClient, study: list[FileDataset], filters: dict[str, str]) -> None:
    found = client.search_for_studies(search_filters=filters)
    assert [[study[0].StudyInstanceUID]] == [_values(one, "0020000D") for one in found]
    assert [3] == _values(found[0], "00201208")
    assert [2] == _values(found[0], "00201206")
    assert {"CT", "MR"} == set(_values(found[0], "00080061"))


def test_a_study_that_is_not_there_is_not_found(client: DICOMwebClient, study: list[FileDataset]) -> None:
    assert [] == client.search_for_studies(search_filters={"PatientID": "CONF-2"})


def test_series_and_instances_are_found(client: DICOMwebClient, study: list[FileDataset]) -> None:
    uid = study[0].StudyInstanceUID
    series = client.search_for_series(uid)
    assert {("CT", 2), ("MR", 1)} == {
        (_values(one, "00080060")[0], _values(one, "00201209")[0]) for one in series
    }
    instances = client.search_for_instances(uid, study[0].SeriesInstanceUID)
    expected = {study[0].SOPInstanceUID, study[1].SOPInstanceUID}
    assert expected == {_values(one, "00080018")[0] for one in instances}


def test_limit_and_offset_page_through_without_repeating(
    client: DICOMwebClient, study: list[FileDataset]
) -> None:
    uid = study[0].StudyInstanceUID
    pages = [client.search_for_instances(uid, limit=1, offset=offset) for offset in range(3)]
    assert {data.SOPInstanceUID for data in study} == {_values(page[0], "00080018")[0] for page in pages}


def test_a_study_comes_back_whole(client: DICOMwebClient, study: list[FileDataset]) -> None:
    back = {data.SOPInstanceUID: data for data in client.retrieve_study(study[0].StudyInstanceUID)}
    assert {data.SOPInstanceUID for data in study} == set(back)
    assert all(
        data.PixelData == back[data.SOPInstanceUID].PixelData for data in study if data.Modality == "CT"
    )


def test_metadata_say_what_the_data_set_says(client: DICOMwebClient, study: list[FileDataset]) -> None:
    data = study[0]
    found = client.retrieve_instance_metadata(
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID
    )
    assert [{"Alphabetic": "Conformance^Case"}] == _values(found, "00100010")
    assert [data.Rows] == _values(found, "00280010")
    assert "BulkDataURI" in found["7FE00010"]
    many = client.retrieve_series_metadata(data.StudyInstanceUID, data.SeriesInstanceUID)
    assert 2 == len(many)


def test_native_frames_come_back(client: DICOMwebClient, study: list[FileDataset]) -> None:
    data = study[1]
    frames = client.retrieve_instance_frames(
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID, [1]
    )
    assert [data.PixelData] == frames


def test_compressed_frames_come_back_as_they_are(client: DICOMwebClient, study: list[FileDataset]) -> None:
    data = study[2]
    expected = next(generate_frames(data.PixelData, number_of_frames=1))
    (frame,) = client.retrieve_instance_frames(
        data.StudyInstanceUID,
        data.SeriesInstanceUID,
        data.SOPInstanceUID,
        [1],
        media_types=(("image/jp2", "1.2.840.10008.1.2.4.90"),),
    )
    assert expected.rstrip(b"\0") == frame.rstrip(b"\0")


def test_bulk_data_comes_back_by_its_uri(client: DICOMwebClient, study: list[FileDataset]) -> None:
    data = study[0]
    found = client.retrieve_instance_metadata(
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID
    )
    uri = found["7FE00010"]["BulkDataURI"]
    assert [data.PixelData] == client.retrieve_bulkdata(uri)


def test_storing_the_same_again_is_no_error_and_changes_nothing(
    client: DICOMwebClient, study: list[FileDataset]
) -> None:
    answer = client.store_instances([study[0]])
    assert 1 == len(answer.ReferencedSOPSequence)
    time.sleep(0.5)
    assert 3 == len(client.search_for_instances(study[0].StudyInstanceUID))
