"""A study over DICOM, staged by the command line, seen by a program, drawn for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from benchmarks.embedded import Embedded
from pydicom import dcmread
from tests.flows.helpers import ENVIRONMENT, isocenter, isocenter_json, settled

from isocenter.gpu_stager.client import Stager


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    environment = {**ENVIRONMENT, "ISOCENTER_GPU_STAGER_PREFETCH": "CT"}
    with Embedded(tmp_path_factory.mktemp("staging"), environment) as running:
        yield running


@pytest.fixture(scope="module")
def study(platform: Embedded, ct: list[Path]) -> str:
    [uid] = isocenter_json("send", ct[0].parent, data_dir=platform.data_dir)["studies"]
    settled(platform.data_dir, [uid])
    return str(uid)


def test_a_program_sees_the_slices_that_were_sent(platform: Embedded, study: str, ct: list[Path]) -> None:
    sent = sorted((dcmread(path) for path in ct), key=lambda one: float(one.ImagePositionPatient[2]))
    with Stager(data_dir=platform.data_dir) as stager, stager.open(study) as volume:
        np.testing.assert_array_equal(volume.array, np.stack([one.pixel_array for one in sent]))
        expected = np.stack([one.pixel_array * one.RescaleSlope + one.RescaleIntercept for one in sent])
        np.testing.assert_array_equal(volume.rescaled(), expected)


def test_the_command_line_stages_lists_and_removes(platform: Embedded, study: str) -> None:
    [first] = isocenter_json("stage", study, data_dir=platform.data_dir)
    [again] = isocenter_json("stage", study, "--pin", "soft", data_dir=platform.data_dir)
    assert again["hit"]
    assert first["path"] == again["path"]
    listed = isocenter_json("staged", data_dir=platform.data_dir)
    assert [("CT", "ready", "soft")] == [(e["modality"], e["state"], e["pin"]) for e in listed["entries"]]
    assert "hits" in isocenter("staged", data_dir=platform.data_dir).stdout
    assert [first["name"]] == isocenter_json("unstage", study, data_dir=platform.data_dir)
    assert [] == isocenter_json("staged", data_dir=platform.data_dir)["entries"]
    assert "Nothing is staged" in isocenter("staged", data_dir=platform.data_dir).stdout
    assert not Path(first["path"]).exists()


def test_a_person_sees_a_picture(platform: Embedded, study: str, tmp_path: Path) -> None:
    png = tmp_path / "ct.png"
    said = isocenter("view", study, "--png", png, "--slices", "4", data_dir=platform.data_dir)
    assert "checksums hold" in said.stdout
    picture = imagecodecs.png_decode(png.read_bytes())
    assert (256, 4 * 256 + 3 * 4, 3) == picture.shape
    assert picture.min() == 0
    assert picture.max() == 255
    assert 0o600 == png.stat().st_mode & 0o777


def test_the_journey_tells_when_it_was_ready(platform: Embedded, study: str) -> None:
    told = isocenter_json("trace", study, data_dir=platform.data_dir)
    staged = [event for event in told["events"] if event["type"].endswith("study.staged.v1")]
    assert "gpu-stager" in staged[0]["source"]
    assert any(span["name"] == "stage series" for span in told["spans"])
    data = staged[0]["data"]
    assert data["received_at"] < data["staged_at"]
    assert "s after it was" in isocenter("trace", study, data_dir=platform.data_dir).stdout


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (("stage", "1.2.3"), 6, "no such study"),
    (("view", "1.2.3", "--png", "never.png"), 6, "no such study"),
])  # fmt: skip
def test_what_is_not_there_is_one_line(
    platform: Embedded, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = isocenter(*arguments, data_dir=platform.data_dir, expect=code)
    assert says in done.stderr


def test_without_a_platform_the_next_step_is_said(tmp_path: Path) -> None:
    done = isocenter("staged", data_dir=tmp_path, expect=3)
    assert "no stager answers" in done.stderr
    assert "isocenter up" in done.stderr


def test_the_probe_says_what_this_node_can_do(tmp_path: Path) -> None:
    verdict = isocenter_json("gpu", "probe", data_dir=tmp_path)
    assert verdict["mode"] in {"numpy", "posix-pinned", "kvikio-compat", "gds-nvfs", "gds-p2pdma"}
    text = isocenter("gpu", "probe", data_dir=tmp_path).stdout
    assert verdict["mode"] in text
    assert json.dumps(verdict)
