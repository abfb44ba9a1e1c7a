"""`isocenter doctor` on a cluster: each engine is asked, and one that is not there is named."""

from __future__ import annotations

from typing import Any

from testbed.cluster import Cluster
from testbed.server import free_port

ENGINES = {"Kafka", "MongoDB", "S3"}


def engines(found: list[dict[str, Any]]) -> dict[str, str]:
    return {each["name"]: each["verdict"] for each in found if each["name"] in ENGINES}


def test_every_engine_is_well(cluster: Cluster) -> None:
    found = cluster.isocenter_json("doctor", "--dicom-port", "0", "--http-port", "0")
    assert dict.fromkeys(ENGINES, "ok") == engines(found)


def test_an_engine_that_does_not_answer_is_named(cluster: Cluster) -> None:
    nobody = free_port()
    found = cluster.isocenter_json(
        *("doctor", "--dicom-port", "0", "--http-port", "0"),
        expect=1,
        environment={
            "ISOCENTER_KAFKA_BOOTSTRAP": f"127.0.0.1:{nobody}",
            "ISOCENTER_MONGO_URI": f"mongodb://127.0.0.1:{nobody}/?replicaSet=rs0",
            "ISOCENTER_S3_ENDPOINT": f"http://127.0.0.1:{nobody}",
        },
    )
    assert dict.fromkeys(ENGINES, "fail") == engines(found)


def test_topics_that_differ_are_told(cluster: Cluster) -> None:
    found = cluster.isocenter_json(
        *("doctor", "--dicom-port", "0", "--http-port", "0"),
        expect=1,
        environment={
            "ISOCENTER_KAFKA_REPLICATION_FACTOR": "2",
            "ISOCENTER_KAFKA_MIN_INSYNC_REPLICAS": "2",
        },
    )
    (kafka,) = (each for each in found if each["name"] == "Kafka")
    assert ("fail", "isocenter topics diff") == (kafka["verdict"], kafka["hint"])
