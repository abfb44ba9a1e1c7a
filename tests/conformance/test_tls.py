"""DCMTK and Orthanc over TLS: with their own certificate under their own title, and with others."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from benchmarks import peers
from benchmarks.embedded import Embedded, free_port
from benchmarks.peers import Orthanc
from benchmarks.samples import sample
from pydicom import dcmread

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("dcmtk")]


@dataclass
class Secured:
    """A platform with a TLS port, and what its clients have."""

    platform: Embedded
    port: int
    folder: Path

    def run(self, tool: str, title: str, *more: str | Path, owner: str | None = None) -> int:
        """Of DCMTK, under an AE title with the certificate of `owner` (by default of the title)."""
        name = (owner or title).lower()
        identity = ("+tls", self.folder / f"{name}.key", self.folder / f"{name}.crt")
        return peers.dcmtk(
            *(tool, *identity, "+cf", self.folder / "ca.crt", "-aet", title, "-aec", "ISOCENTER"),
            *("127.0.0.1", str(self.port), *more),
        ).returncode


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def issue(folder: Path, name: str) -> str:
    """A key and a certificate signed by the authority, in files; its fingerprint."""
    key, request, certificate = (folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
    openssl(
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        request,
        "-subj",
        f"/CN={name}",
    )
    openssl(
        *("x509", "-req", "-in", request, "-days", "30", "-out", certificate),
        *("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial"),
    )
    shown = openssl("x509", "-in", certificate, "-noout", "-fingerprint", "-sha256")
    return "sha256:" + shown.strip().partition("=")[2].replace(":", "").lower()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=authority"),
        *("-keyout", folder / "ca.key", "-out", folder / "ca.crt"),
    )
    issue(folder, "server")
    entries = []
    for title, allow in (("MODALITY", ["echo", "store"]), ("TESTER", ["echo"]), ("ORTHANC", ["store"])):
        certificate = issue(folder, title.lower())
        entries.append(f'[[peer]]\nae_title = "{title}"\ncertificates = ["{certificate}"]\nallow = {allow}\n')
    (folder / "peers.toml").write_text("\n".join(entries))
    port = free_port()
    environment = {
        "ISOCENTER_PEERS_FILE": str(folder / "peers.toml"),
        "ISOCENTER_INGEST_DICOM_TLS_PORT": str(port),
        "ISOCENTER_INGEST_TLS_CERTIFICATE_FILE": str(folder / "server.crt"),
        "ISOCENTER_INGEST_TLS_KEY_FILE": str(folder / "server.key"),
        "ISOCENTER_INGEST_TLS_CLIENT_CA_FILE": str(folder / "ca.crt"),
    }
    with Embedded(tmp_path_factory.mktemp("secured"), environment) as platform:
        yield Secured(platform, port, folder)


def test_dcmtk_verifies_and_stores(secured: Secured, tmp_path: Path) -> None:
    file = sample("CT_small.dcm", tmp_path)
    assert 0 == secured.run("echoscu", "MODALITY")
    assert 0 == secured.run("storescu", "MODALITY", file.path)
    (part,) = secured.platform.instances(file.resource)
    # Both encode sequences anew: equal bytes are the business of the tests without TLS.
    assert dcmread(file.path).PixelData == dcmread(BytesIO(part)).PixelData


def test_what_a_title_may_not_do_or_not_under_this_certificate_fails(
    secured: Secured, tmp_path: Path
) -> None:
    file = sample("CT_small.dcm", tmp_path)
    assert 0 == secured.run("echoscu", "TESTER")
    assert 0 != secured.run("storescu", "TESTER", file.path)
    assert 0 != secured.run("storescu", "MODALITY", file.path, owner="TESTER")
    assert 0 != secured.run("storescu", "NOBODY", file.path, owner="MODALITY")
    address = ("127.0.0.1", str(secured.platform.dicom_port))
    assert 0 != peers.dcmtk("echoscu", "-aet", "MODALITY", *address).returncode, "in clear"


@pytest.fixture
def orthanc_over_tls(secured: Secured, need: Callable[[str], None], tmp_path: Path) -> Iterator[Orthanc]:
    need("orthanc")
    configuration = {
        "DicomTlsEnabled": False,
        "DicomTlsCertificate": str(secured.folder / "orthanc.crt"),
        "DicomTlsPrivateKey": str(secured.folder / "orthanc.key"),
        "DicomTlsTrustedCertificates": str(secured.folder / "ca.crt"),
        "DicomModalities": {
            "secured": {"AET": "ISOCENTER", "Host": "127.0.0.1", "Port": secured.port, "UseDicomTls": True}
        },
    }
    with Orthanc(tmp_path / "orthanc", configuration) as running:
        yield running


def test_orthanc_stores(secured: Secured, orthanc_over_tls: Orthanc, tmp_path: Path) -> None:
    file = sample("MR_small_RLE.dcm", tmp_path)
    identifier = orthanc_over_tls.upload(file.path.read_bytes())
    answer: httpx.Response = orthanc_over_tls.client.post("/modalities/secured/store", json=[identifier])
    assert 200 == answer.status_code, answer.text
    (part,) = secured.platform.instances(file.resource)
    assert dcmread(file.path).PixelData == dcmread(BytesIO(part)).PixelData
