"""One study from an association to a reader, over two replicas of ingest and indexer and real engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import retrieve
from testbed.cluster import Cluster
from testbed.otlp import OtlpSink, Span
from tests.cluster.helpers import send, settled, until

from isocenter.cli.synth import uid_for, write_ct
from isocenter.cli.wado import Sent, compare, fingerprint_file
from isocenter.cli.wado import retrieve as retrieve_study

SEED = 3
STUDY = uid_for(SEED, "study")


@pytest.fixture(scope="module")
def study(cluster: Cluster, ct: list[Path]) -> dict[str, Any]:
    """The CT volume, sent half to one replica of ingest and half to the other, and settled."""
    first, second = cluster.of("ingest")
    for replica, files in ((first, ct[::2]), (second, ct[1::2])):
        assert len(files) == send(cluster, replica, *files)["counts"]["stored"]
    return until(
        lambda: found if (found := settled(cluster, STUDY))["instances"] == len(ct) else None,
        lambda: f"{settled(cluster, STUDY)} is not the whole study",
    )


def test_what_was_sent_to_two_replicas_is_one_study(study: dict[str, Any], ct: list[Path]) -> None:
    assert (1, len(ct)) == (study["series"], study["instances"])


def test_it_comes_back_byte_for_byte(cluster: Cluster, study: dict[str, Any], ct: list[Path]) -> None:
    sent = {mark.sop_instance_uid: [Sent(mark, whole=False)] for mark in map(fingerprint_file, ct)}
    found = compare(retrieve_study(cluster.dicom_web, STUDY), sent)

    assert found.proven
    assert len(ct) == found.equal_data_set


def test_it_is_found(cluster: Cluster, study: dict[str, Any]) -> None:
    status, _, body = cluster.get("/dicom-web/studies?PatientName=phantom*&ModalitiesInStudy=CT")

    assert 200 == status
    assert STUDY in [each["0020000D"]["Value"][0] for each in json.loads(body)]


def test_the_trace_is_unbroken_across_replicas(
    cluster: Cluster, study: dict[str, Any], sink: OtlpSink, ct: list[Path]
) -> None:
    """From the association over ingest and the indexer to the reader: every span has its parent."""
    assert list(retrieve_study(cluster.dicom_web, STUDY))

    def whole() -> list[Span] | None:
        spans = sink.of_study(study["study_key"])
        return spans if {"ingest", "indexer", "gateway"} <= {span.service for span in spans} else None

    spans = until(whole, "no trace has all three services")
    traces = {span.trace_id for span in spans}
    known = {span.span_id for span in spans}
    assert [] == [span.name for span in spans if span.parent_id is not None and span.parent_id not in known]
    assert len(traces) >= 2  # one per association; the study joins them
    assert {"ingest-1", "ingest-2"} <= {span.instance for span in spans}
    settling = [span for span in spans if span.service == "indexer" and "settle" in span.name]
    assert settling


def test_events_tell_its_story_in_order(cluster: Cluster, study: dict[str, Any], ct: list[Path]) -> None:
    journey = cluster.isocenter_json("trace", STUDY)
    names = [event["type"].removeprefix("org.isocenter.imaging.") for event in journey["events"]]
    stored = sum(
        len(event["data"]["instances"]) for event in journey["events"] if "instances.stored" in event["type"]
    )

    assert "instances.stored.v1" == names[0]
    assert len(ct) == stored
    assert "study.settled.v1" in names


def test_stow_arrives_at_any_replica(cluster: Cluster, tmp_path: Path) -> None:
    files = write_ct(tmp_path, slices=3, seed=77)
    replica = cluster.of("ingest")[1]
    report = cluster.isocenter_json(
        "send", *files, "--stow", "--to", f"http://127.0.0.1:{replica.http_port}/dicom-web"
    )
    uid = uid_for(77, "study")

    assert 3 == report["counts"]["stored"]
    assert 3 == settled(cluster, uid)["instances"]
    found = {retrieve.digest(part) for part in cluster.instances(f"/dicom-web/studies/{uid}", at_least=3)}
    assert {retrieve.digest(path.read_bytes()) for path in files} == found


def test_replicas_share_the_partitions(cluster: Cluster, study: dict[str, Any]) -> None:
    """Both replicas of the indexer are ready, and between them they read every partition."""
    for replica in cluster.of("indexer"):
        assert (200, "") != replica.health("/readyz")
        assert 200 == replica.health("/readyz")[0]


def test_late_instances_by_another_replica_make_the_next_version(cluster: Cluster, tmp_path: Path) -> None:
    files = write_ct(tmp_path, slices=6, seed=78)
    first, second = cluster.of("ingest")
    uid = uid_for(78, "study")
    send(cluster, first, *files[:4])
    before = settled(cluster, uid)
    send(cluster, second, *files[4:])
    after = settled(cluster, uid, before["version"] + 1)

    assert (4, 6) == (before["instances"], after["instances"])
