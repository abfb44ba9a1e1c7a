"""Orthanc as the requester of storage commitment: it stores, asks, and is told on an association of its own.

Over the platform as it is shipped, objects sealed; answers must be true of what is on the disk.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from benchmarks.embedded import Embedded
from benchmarks.peers import Orthanc
from pydicom import dcmread

from isocenter.cli.site import open_index
from isocenter.cli.synth import write_ct
from isocenter.ingest.commitment.testing import Requester

pytestmark = pytest.mark.peer

PROCESSING_FAILURE, NO_SUCH_OBJECT, CLASS_CONFLICT = 0x0110, 0x0112, 0x0119
MR = "1.2.840.10008.5.1.4.1.1.4"
REPORT_SECONDS = 60.0

Pair = tuple[str, str]


@dataclass
class Pacs:
    """An Orthanc and the platform, each listed at the other; and a modality that is listed, too."""

    orthanc: Orthanc
    platform: Embedded
    modality: Requester
    folder: Path
    seeds: Iterator[int]

    def stored(self) -> list[Pair]:
        """Instances of a new study that Orthanc had, and has sent."""
        files = write_ct(self.folder / f"ct{next(self.seeds)}", slices=3, seed=next(self.seeds))
        contents = [path.read_bytes() for path in files]
        resources = [self.orthanc.upload(content) for content in contents]
        answer = self.orthanc.client.post("/modalities/isocenter/store", json=resources)
        assert answer.status_code == 200, answer.text
        heads = [dcmread(BytesIO(content), stop_before_pixels=True) for content in contents]
        return [(str(head.SOPClassUID), str(head.SOPInstanceUID)) for head in heads]

    def ask(self, *references: Pair) -> str:
        """Orthanc's name for the request that it has sent."""
        answer = self.orthanc.client.post(
            "/modalities/isocenter/storage-commitment", json={"DicomInstances": [list(r) for r in references]}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["ID"])

    def told(self, request: str) -> dict[str, Any]:
        """What Orthanc was told."""
        deadline = time.monotonic() + REPORT_SECONDS
        while True:
            report: dict[str, Any] = self.orthanc.client.get(f"/storage-commitment/{request}").json()
            if report["Status"] != "Pending":
                return report
            assert time.monotonic() < deadline, "Orthanc was not told"
            time.sleep(0.1)

    def verdict(self, *references: Pair) -> tuple[set[str], dict[str, int]]:
        """Committed SOP Instance UIDs, and Failure Reason by SOP Instance UID of the others."""
        report = self.told(self.ask(*references))
        assert report["RemoteAET"] == self.platform.ae_title
        failures = {each["SOPInstanceUID"]: each["FailureReason"] for each in report["Failures"]}
        assert report["Status"] == ("Failure" if failures else "Success")
        return {each["SOPInstanceUID"] for each in report["Success"]}, failures

    def file_of(self, reference: Pair) -> Path:
        """The object of an instance on the disk."""

        async def key() -> str:
            async with open_index(self.platform.data_dir) as index:
                (located,) = await index.locate([reference[1]])
                return located.object_key

        name = asyncio.run(key()).rpartition("/")[2]
        files = (self.platform.data_dir / "objects" / "objects").rglob(f"{name}*")
        (file,) = [path for path in files if path.is_file()]
        return file


@pytest.fixture(scope="module")
def pacs(need: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    need("orthanc")
    folder = tmp_path_factory.mktemp("commitment")
    peers = folder / "peers.toml"
    environment = {
        "ISOCENTER_PEERS_FILE": str(peers),
        "ISOCENTER_INGEST_COMMITMENT_UNKNOWN_SECONDS": "5",
    }
    platform = Embedded(folder / "platform", environment)
    modalities = {"isocenter": [platform.ae_title, "127.0.0.1", platform.dicom_port]}
    orthanc = Orthanc(folder / "orthanc", {"DicomModalities": modalities})
    modality = Requester().listen()
    peers.write_text(
        "".join(
            f'[[peer]]\nae_title = "{title}"\nhost = "127.0.0.1"\nport = {port}\n'
            for title, port in (("ORTHANC", orthanc.dicom_port), (modality.ae_title, modality.port))
        )
    )
    with platform, orthanc:
        yield Pacs(orthanc, platform, modality, folder, iter(range(4000, 5000)))
    modality.hang_up()


def test_what_orthanc_has_stored_is_committed(pacs: Pacs) -> None:
    references = pacs.stored()

    assert ({uid for _, uid in references}, {}) == pacs.verdict(*references)


def test_what_is_damaged_deleted_unknown_or_of_another_class_is_not(pacs: Pacs) -> None:
    damaged, deleted, whole = pacs.stored()
    assert ({damaged[1], deleted[1], whole[1]}, {}) == pacs.verdict(damaged, deleted, whole)
    file = pacs.file_of(damaged)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.chmod(0o600)
    file.write_bytes(content)
    pacs.file_of(deleted).unlink()

    committed, failures = pacs.verdict(damaged, deleted, whole, ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5"))
    _, conflict = pacs.verdict((MR, whole[1]))

    assert {whole[1]} == committed
    assert {
        damaged[1]: PROCESSING_FAILURE,
        deleted[1]: NO_SUCH_OBJECT,
        "1.2.3.4.5": NO_SUCH_OBJECT,
    } == failures
    assert {whole[1]: CLASS_CONFLICT} == conflict


async def test_a_kill_between_request_and_report_loses_no_request(pacs: Pacs) -> None:
    references = pacs.stored()
    pacs.modality.hang_up()
    assert 0 == await pacs.modality.ask(pacs.platform.dicom_port, "2.25.4711", references)

    pacs.platform.kill()
    pacs.modality.listen()
    pacs.platform.launch()
    pacs.platform.wait_ready()

    report = await pacs.modality.report(seconds=REPORT_SECONDS)
    assert ("2.25.4711", references, {}) == (report.transaction_uid, report.committed, report.failed)


def test_an_operator_sees_who_asked_and_what_was_found(pacs: Pacs) -> None:
    request = pacs.ask(*pacs.stored(), ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.6"))
    pacs.told(request)

    command = ("commitments", "--json", "--data-dir", str(pacs.platform.data_dir))
    done = subprocess.run(
        [sys.executable, "-m", "isocenter.cli", *command], capture_output=True, text=True, check=True
    )

    newest = json.loads(done.stdout)[0]
    assert (request, "ORTHANC") == (newest["transaction_uid"], newest["requester"])
    assert (4, {"0112": 1}) == (newest["instances"], newest["failures"])


def test_a_peer_that_is_not_listed_may_not_ask(pacs: Pacs) -> None:
    stranger = Requester(ae_title="STRANGER")
    assert -1 == asyncio.run(stranger.ask(pacs.platform.dicom_port, "2.25.4712", [(MR, "1.2.3")]))
