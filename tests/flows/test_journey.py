"""One study, from an association to a reader, over the platform as a user starts it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks.embedded import Embedded
from tests.flows.helpers import ENVIRONMENT, isocenter, isocenter_json, settled

from isocenter.cli.errors import Exit
from isocenter.cli.synth import uid_for
from isocenter.cli.wado import Sent, compare, fingerprint_file, retrieve

STUDY, SERIES = uid_for(1, "study"), uid_for(1, "series")


@dataclass(frozen=True)
class Running:
    platform: Embedded
    study_key: str

    @property
    def data_dir(self) -> Path:
        return self.platform.data_dir


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, ct: list[Path]) -> Iterator[Running]:
    """A platform that received the CT volume over C-STORE and has settled it."""
    with Embedded(tmp_path_factory.mktemp("journey"), ENVIRONMENT) as platform:
        isocenter_json("send", ct[0].parent, data_dir=platform.data_dir)
        record = settled(platform.data_dir, [STUDY])[STUDY]
        yield Running(platform, record.study_key)


def test_what_was_sent_is_told_file_by_file(running: Running, ct: list[Path]) -> None:
    """Sending again is Success for every file, and still one study with as many instances."""
    report = isocenter_json("send", ct[0].parent, data_dir=running.data_dir)

    assert {"stored": len(ct), "refused": 0, "skipped": 0} == report["counts"]
    assert [STUDY] == report["studies"]
    assert {str(path) for path in ct} == {each["path"] for each in report["files"]}
    assert len(ct) == _search(running, f"/studies?StudyInstanceUID={STUDY}")[0]["00201208"]["Value"][0]


def test_it_is_found(running: Running, ct: list[Path]) -> None:
    (study,) = _search(running, "/studies?PatientName=phantom*&ModalitiesInStudy=CT")
    series = _search(running, f"/studies/{STUDY}/series")
    instances = _search(running, f"/studies/{STUDY}/series/{SERIES}/instances?limit=100")

    assert STUDY == study["0020000D"]["Value"][0]
    assert [SERIES] == [each["0020000E"]["Value"][0] for each in series]
    assert {uid_for(1, "instance", number) for number in range(1, len(ct) + 1)} == {
        each["00080018"]["Value"][0] for each in instances
    }


def test_it_comes_back_byte_for_byte(running: Running, ct: list[Path]) -> None:
    sent = {mark.sop_instance_uid: [Sent(mark, whole=False)] for mark in map(fingerprint_file, ct)}

    found = compare(retrieve(running.platform.dicom_web, STUDY), sent)

    assert found.proven
    assert len(ct) == found.equal_data_set


def test_the_same_study_over_stow_is_the_same_objects(running: Running, ct: list[Path]) -> None:
    """File meta information is no part of an instance's identity."""
    before = _object_count(running.data_dir)

    report = isocenter_json("send", "--stow", ct[0].parent, data_dir=running.data_dir)

    assert len(ct) == report["counts"]["stored"]
    assert before == _object_count(running.data_dir)


def test_metadata_and_a_frame(running: Running, ct: list[Path]) -> None:
    status, _, body = running.platform.get(f"/dicom-web/studies/{STUDY}/metadata")
    uid = uid_for(1, "instance", 5)
    frame_status, _, frame = running.platform.get(
        f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{uid}/frames/1",
        'multipart/related; type="application/octet-stream"',
    )

    assert 200 == status
    assert len(ct) == len(json.loads(body))
    assert 200 == frame_status
    assert ct[4].read_bytes()[-512 * 512 * 2 :] in frame


def test_one_trace_runs_from_the_association_to_the_reader(running: Running) -> None:
    list(retrieve(running.platform.dicom_web, STUDY))

    journey = _traced(running, "GET /dicom-web/studies/{study}")

    spans = journey["spans"]
    first = min(spans, key=lambda span: span["start_ns"])
    of_first = [span for span in spans if span["trace_id"] == first["trace_id"]]
    services = {"ingest", "indexer", "gateway", "gpu-stager"}
    assert services == {span["service"] for span in of_first}
    assert first["parent_id"] is None
    known = {span["span_id"] for span in of_first}
    orphans = [span["name"] for span in of_first if span["parent_id"] not in known and span is not first]
    assert [] == orphans


def test_its_events_tell_the_story_in_order(running: Running, ct: list[Path]) -> None:
    journey = isocenter_json("trace", STUDY, data_dir=running.data_dir)

    names = [event["type"].removeprefix("org.isocenter.imaging.") for event in journey["events"]]
    stored = sum(
        len(event["data"]["instances"]) for event in journey["events"] if "instances.stored" in event["type"]
    )
    assert "instances.stored.v1" == names[0]
    assert stored >= len(ct)
    assert names.index("transfer.closed.v1") < names.index("study.settled.v1")
    assert running.study_key == journey["study_key"]


def test_the_journey_for_people_names_services_and_events(running: Running) -> None:
    text = isocenter("trace", running.study_key, data_dir=running.data_dir).stdout

    for expected in ("study.settled.v1", "association", "ingest", "indexer"):
        assert expected in text
    # Which part of a character a bar is depends on how long the machine idled between the spans.
    assert set("▏▎▍▌▋▊▉█") & set(text)


def test_studies_lists_it(running: Running) -> None:
    (study,) = isocenter_json("studies", data_dir=running.data_dir)
    table = isocenter("studies", data_dir=running.data_dir).stdout

    assert (STUDY, "settled", ["CT"]) == (study["study_instance_uid"], study["state"], study["modalities"])
    assert running.study_key in table


def test_an_unknown_study_is_not_found(running: Running) -> None:
    done = isocenter("trace", "1.2.3.4", data_dir=running.data_dir, expect=Exit.NOT_FOUND)

    assert "try: isocenter studies" in done.stderr


def test_nothing_was_dead_lettered(running: Running) -> None:
    assert [] == isocenter_json("dlq", "ls", data_dir=running.data_dir)


def test_a_second_platform_is_refused_by_process_id(running: Running) -> None:
    done = isocenter("up", data_dir=running.data_dir, expect=Exit.BUSY)

    assert f"process {running.platform.pid} holds" in done.stderr


def test_reindex_is_refused_while_the_platform_runs(running: Running) -> None:
    done = isocenter("reindex", data_dir=running.data_dir, expect=Exit.BUSY)

    assert str(running.platform.pid) in done.stderr


def test_doctor_finds_the_platform_ready(running: Running) -> None:
    findings = {each["name"]: each for each in isocenter_json("doctor", data_dir=running.data_dir)}

    assert "ok" == findings["platform"]["verdict"]
    assert f"process {running.platform.pid}" in findings["platform"]["value"]
    assert {"data directory", "disk sync", "clock", "site key", "open files"} <= set(findings)


def test_health_and_metrics_speak_for_all_services(running: Running) -> None:
    ready_status, _, ready = running.platform.get("/readyz")
    live_status, _, _ = running.platform.get("/livez")
    metrics_status, _, metrics = running.platform.get("/metrics")

    assert (200, 200, 200) == (ready_status, live_status, metrics_status)
    services = {"ingest", "indexer", "gateway", "gpu-stager"}
    assert services == {check["service"] for check in json.loads(ready)["checks"]}
    assert b"isocenter_" in metrics


def test_what_is_not_there_is_404(running: Running) -> None:
    assert 404 == running.platform.get("/dicom-web/studies/1.2.3/metadata")[0]
    assert 404 == running.platform.get("/nothing-here")[0]


def _search(running: Running, path: str) -> list[dict[str, Any]]:
    status, _, body = running.platform.get(f"/dicom-web{path}")
    assert 200 == status
    found: list[dict[str, Any]] = json.loads(body)
    return found


def _traced(running: Running, name: str) -> Any:
    """The journey once a span of this name is in it: spans leave in small batches."""
    for _ in range(40):
        journey = isocenter_json("trace", STUDY, data_dir=running.data_dir)
        if any(span["name"] == name for span in journey["spans"]):
            return journey
    raise AssertionError(f"no span {name}")


def _object_count(data_dir: Path) -> int:
    return sum(1 for path in (data_dir / "objects").rglob("instances/**/*") if path.is_file())
