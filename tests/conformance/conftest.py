"""The platform as a subprocess, and the peers it talks to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks import peers
from benchmarks.embedded import Embedded
from benchmarks.peers import BitPreservingScp, Orthanc


@pytest.fixture(scope="session")
def need() -> Callable[[str], None]:
    """Skips with the reason where a peer is not installed; fails where it should have been."""

    def check(package: str) -> None:
        if peers.installed(package):
            return
        reason = f"NOT RUN: Debian package {package} is not installed (scripts/install_peers.sh)"
        if peers.must_be_installed():
            pytest.fail(reason)
        pytest.skip(reason)

    return check


@pytest.fixture
def dcmtk(need: Callable[[str], None]) -> None:
    need("dcmtk")


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One running platform for all of these tests; each sends instances of its own."""
    with Embedded(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def reference(dcmtk: None, tmp_path: Path) -> Iterator[BitPreservingScp]:
    with BitPreservingScp(tmp_path / "reference") as running:
        yield running


@pytest.fixture(scope="session")
def orthanc(
    need: Callable[[str], None], platform: Embedded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Orthanc]:
    """An Orthanc that knows the platform as a DICOM modality and as a DICOMweb server."""
    need("orthanc")
    need("orthanc-dicomweb")
    configuration = {
        "DicomModalities": {"isocenter": [platform.ae_title, "127.0.0.1", platform.dicom_port]},
        "DicomWeb": {"Enable": True, "Servers": {"isocenter": {"Url": f"{platform.dicom_web}/"}}},
    }
    with Orthanc(tmp_path_factory.mktemp("orthanc"), configuration) as running:
        yield running
