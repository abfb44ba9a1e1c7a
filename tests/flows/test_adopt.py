"""`isocenter adopt`: an archive is served from where it lies, survives kills, and can be taken in later."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from benchmarks.embedded import Embedded
from minio import Minio
from pydicom.uid import UID
from tests.flows.helpers import ENVIRONMENT, isocenter_json

from isocenter.cli.synth import uid_for, write_ct

if TYPE_CHECKING:
    from testbed.radosgw import RadosGateway

SLICES = 8
SMALL = 200
"""Instances of which a kill finds some done and some not."""
PACKAGE = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A study, the same slice twice, and what lies about in archives."""
    folder = tmp_path / "DOE JANE"
    files = write_ct(folder / "ct", slices=SLICES, seed=70)
    shutil.copy(files[0], folder / "again.dcm")
    (folder / "readme.txt").write_text("burnt 1999")
    (folder / "empty").touch()
    shutil.copy(PACKAGE / "dicomdirtests" / "DICOMDIR", folder / "DICOMDIR")
    (folder / "link.dcm").symlink_to(files[0])
    return folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "platform" / "data"


def counts(report: dict[str, Any]) -> tuple[int, int, int, int]:
    return report["taken"], report["duplicate"], report["skipped"], report["refused"]


def served(data_dir: Path) -> list[bytes]:
    with Embedded(data_dir.parent, ENVIRONMENT) as platform:
        path = f"/dicom-web/studies/{uid_for(70, 'study')}"
        return sorted(platform.instances(path, at_least=SLICES))


def stored_bytes(data_dir: Path) -> int:
    return sum(
        path.stat().st_size for path in (data_dir / "objects" / "objects").rglob("*") if path.is_file()
    )


def slices(archive: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (archive / "ct").iterdir())


def test_an_archive_is_indexed_and_served_from_where_it_lies(archive: Path, data_dir: Path) -> None:
    content = slices(archive)

    report = isocenter_json("adopt", archive, data_dir=data_dir)

    assert (SLICES, 1, 4, 0) == counts(report)
    assert {"not-dicom": 3, "a link": 1} == report["reasons"]
    assert stored_bytes(data_dir) < sum(map(len, content)) / 10
    for path in (data_dir / "objects").rglob("*"):
        assert not path.is_file() or b"DOE JANE" not in path.read_bytes()
    (study,) = isocenter_json("studies", data_dir=data_dir)
    assert SLICES == study["instances"]
    assert content == served(data_dir)
    assert content == slices(archive)


def test_a_second_run_doubles_nothing_and_all_can_be_moved_in_later(archive: Path, data_dir: Path) -> None:
    content = slices(archive)
    (archive / "torn.dcm").write_bytes(content[0][: len(content[0]) // 2])

    first = isocenter_json("adopt", archive, data_dir=data_dir, expect=1)
    assert (SLICES, 1, 4, 1) == counts(first)
    assert ["torn.dcm"] == [each["path"] for each in first["named"] if each["fate"] == "refused"]
    (archive / "torn.dcm").unlink()
    again = isocenter_json("adopt", archive, data_dir=data_dir)
    assert SLICES + 4 == again["done_before"]
    (data_dir / "adopted.sqlite").unlink()
    without_notes = isocenter_json("adopt", archive, data_dir=data_dir)
    assert (0, SLICES + 1, 4, 0) == counts(without_notes)

    copied = isocenter_json("adopt", archive, "--copy", data_dir=data_dir)
    assert content == slices(archive)
    assert sum(map(len, content)) < stored_bytes(data_dir)
    moved = isocenter_json("adopt", archive, "--move", data_dir=data_dir)
    assert (0, SLICES + 1) == (copied["removed"], moved["removed"])
    assert {"readme.txt", "empty", "DICOMDIR", "link.dcm", "ct"} == {each.name for each in archive.iterdir()}

    shutil.rmtree(archive)
    rebuilt = isocenter_json("reindex", data_dir=data_dir)
    assert (SLICES, SLICES, 0) == (rebuilt["objects"], rebuilt["instances"], rebuilt["conflicts"])
    assert content == served(data_dir)


@pytest.mark.parametrize("way", [[], ["--move"]])
def test_killed_again_and_again_it_comes_to_its_end(tmp_path: Path, data_dir: Path, way: list[str]) -> None:
    folder = tmp_path / "archive"
    content = sorted(path.read_bytes() for path in write_ct(folder / "ct", slices=SLICES, seed=70))
    dataset = pydicom.dcmread(write_ct(tmp_path / "small", slices=1, seed=1000)[0])
    dataset.Rows = dataset.Columns = 8
    dataset.PixelData = bytes(128)
    for number in range(SMALL):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number}")
        dataset.save_as(folder / f"{number:03}.dcm")

    kills = 0
    for after in (10, SMALL // 2):
        running = subprocess.Popen(
            [sys.executable, "-m", "isocenter.cli", "adopt", str(folder), *way, "--data-dir", str(data_dir)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while running.poll() is None and objects(data_dir) < after:
            time.sleep(0.005)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            kills += 1
        running.wait(30)
    report = isocenter_json("adopt", folder, *way, data_dir=data_dir)
    rebuilt = isocenter_json("reindex", data_dir=data_dir)

    assert kills
    assert 0 == report["refused"]
    assert (SMALL + SLICES, 0) == (rebuilt["instances"], rebuilt["conflicts"])
    assert (0 if way else SMALL + SLICES) == sum(1 for each in folder.rglob("*.dcm"))
    assert content == served(data_dir)


def objects(data_dir: Path) -> int:
    try:
        return sum(1 for path in (data_dir / "objects" / "objects").rglob("*") if path.is_file())
    except OSError:
        return 0


@pytest.fixture
def bucket(s3_server: RadosGateway, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Minio:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    address = s3_server.endpoint.partition("://")[2]
    client = Minio(address, s3_server.access_key, s3_server.secret_key, secure=False, region="us-east-1")
    client.make_bucket("old-pacs")
    for path in sorted((archive / "ct").iterdir()):
        client.fput_object("old-pacs", f"studies/{path.name}", str(path))
    return client


def test_an_archive_in_s3_is_served_from_there_and_moved_in(
    s3_server: RadosGateway, bucket: Minio, archive: Path, data_dir: Path
) -> None:
    arguments = ("adopt", "s3://old-pacs/studies", "--endpoint", s3_server.endpoint)

    report = isocenter_json(*arguments, data_dir=data_dir)
    assert (SLICES, 0, 0, 0) == counts(report)
    assert stored_bytes(data_dir) < report["bytes"] / 10
    isocenter_json("reindex", data_dir=data_dir)  # reads each of them where it is
    isocenter_json(*arguments, "--move", data_dir=data_dir)

    assert [] == list(bucket.list_objects("old-pacs", recursive=True))
    assert slices(archive) == served(data_dir)
