"""Orthanc sends what it has, over C-STORE and over STOW-RS."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from benchmarks import retrieve
from benchmarks.embedded import Embedded
from benchmarks.peers import BitPreservingScp, Orthanc
from benchmarks.samples import sample

pytestmark = pytest.mark.peer


def stored(platform: Embedded, resource: str) -> bytes:
    (part,) = platform.instances(resource)
    return part


@pytest.mark.parametrize("name", ["examples_palette.dcm", "SC_rgb_rle.dcm", "GDCMJ2K_TextGBR.dcm"])
def test_orthanc_sends_over_c_store(
    platform: Embedded,
    orthanc: Orthanc,
    reference: BitPreservingScp,
    tmp_path: Path,
    name: str,
) -> None:
    """Orthanc sends the same instance to us and to a bit-preserving receiver: both hold the same bytes."""
    file = sample(name, tmp_path)
    identifier = orthanc.upload(file.path.read_bytes())
    orthanc.client.put(
        "/modalities/reference", json={"AET": "REFERENCE", "Host": "127.0.0.1", "Port": reference.port}
    ).raise_for_status()
    for modality in ("isocenter", "reference"):
        answer = orthanc.client.post(f"/modalities/{modality}/store", json=[identifier])
        assert 200 == answer.status_code, answer.text
        assert 0 == answer.json()["FailedInstancesCount"]
    (expected,) = reference.received()

    assert retrieve.data_set(expected) == retrieve.data_set(stored(platform, file.resource))


@pytest.mark.parametrize("name", ["SC_rgb_rle_2frame.dcm", "J2K_pixelrep_mismatch.dcm", "liver_1frame.dcm"])
def test_orthanc_sends_over_stow(platform: Embedded, orthanc: Orthanc, tmp_path: Path, name: str) -> None:
    """The plugin posts its stored file as it is; the data set we give back is that of the file."""
    file = sample(name, tmp_path)
    identifier = orthanc.upload(file.path.read_bytes())
    answer = orthanc.client.post(
        "/dicom-web/servers/isocenter/stow", json={"Resources": [identifier], "Synchronous": True}
    )
    assert 200 == answer.status_code, answer.text
    expected = orthanc.client.get(f"/instances/{identifier}/file").content

    assert retrieve.data_set(expected) == retrieve.data_set(stored(platform, file.resource))


def test_orthanc_reads_back_a_study_over_dicomweb(
    platform: Embedded, orthanc: Orthanc, tmp_path: Path
) -> None:
    """Orthanc as a DICOMweb client: it sends a study, forgets it, retrieves it, and has the same pixels."""
    file = sample("MR_small_padded.dcm", tmp_path)
    identifier = orthanc.upload(file.path.read_bytes())
    answer = orthanc.client.post("/dicom-web/servers/isocenter/stow", json={"Resources": [identifier]})
    assert 200 == answer.status_code, answer.text
    orthanc.client.delete(f"/instances/{identifier}").raise_for_status()

    answer = orthanc.client.post(
        "/dicom-web/servers/isocenter/retrieve", json={"Resources": [{"Study": file.study}]}
    )
    assert 200 == answer.status_code, answer.text
    path = tmp_path / "back.dcm"
    path.write_bytes(orthanc.client.get(f"/instances/{identifier}/file").content)

    assert pydicom.dcmread(file.path).PixelData == pydicom.dcmread(path).PixelData
