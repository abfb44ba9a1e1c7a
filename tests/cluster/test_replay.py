"""Every topic again from its first record, on the real engines: nothing changes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from minio import Minio
from testbed.cluster import Cluster
from tests.cluster import verdict
from tests.cluster.helpers import send, settled, until

from isocenter.cli.synth import uid_for, write_ct
from isocenter.common.events.topics import TOPICS

STUDIES = 4
OUTBOX = "outbox"
ANNOUNCED = 250
"""Seed of the study that another system announces."""


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, new_cluster: Callable[..., AbstractContextManager[Cluster]]
) -> Iterator[Cluster]:
    """A cluster of its own, whose consumers this test stops and starts again."""
    folder = tmp_path_factory.mktemp("replay")
    with new_cluster(folder / "cluster") as cluster:
        for seed in range(STUDIES):
            files = write_ct(folder / str(seed), slices=5, seed=200 + seed)
            send(cluster, cluster.of("ingest")[seed % 2], *files)
        for seed in range(STUDIES):
            settled(cluster, uid_for(200 + seed, "study"))
        _announce(cluster, folder)
        settled(cluster, uid_for(ANNOUNCED, "study"))
        until(lambda: _caught_up(cluster), "the announcement was not acknowledged")
        yield cluster


def test_replaying_every_topic_from_the_beginning_changes_nothing(filled: Cluster) -> None:
    before, events = asyncio.run(verdict.dump(filled)), asyncio.run(_records(filled))
    services = {group.partition(".")[0] for group, _ in _groups(filled)}
    readers = [replica for service in sorted(services) for replica in filled.of(service)]
    assert readers
    for replica in readers:
        replica.stop()

    asyncio.run(_rewind(filled))
    assert not _caught_up(filled)
    for replica in readers:
        replica.launch()
    for replica in readers:
        replica.wait_ready()
    until(lambda: _caught_up(filled), "the consumers did not catch up")

    assert before == asyncio.run(verdict.dump(filled))
    assert events == asyncio.run(_records(filled))


def test_a_rebuilt_index_equals_the_one_that_was_there(filled: Cluster) -> None:
    kept = asyncio.run(verdict.dump(filled))
    report = filled.isocenter_json(
        "reindex", environment={"ISOCENTER_MONGO_DATABASE": "anew", "ISOCENTER_KEYS_DATABASE": "isocenter"}
    )

    assert STUDIES + 1 == report["studies"] == report["settled"]
    assert kept == asyncio.run(verdict.dump(filled, "anew"))


def _announce(cluster: Cluster, folder: Path) -> None:
    """A study in another system's bucket, which is listed as a source, is announced."""
    sources = folder / "sources.toml"
    sources.write_text(
        f"""[[source]]
name = "east"
kind = "s3"
ref = "s3://{OUTBOX}/studies"
endpoint = "{cluster.s3.endpoint}"
access_key = {{ env = "ISOCENTER_S3_ACCESS_KEY" }}
secret_key = {{ env = "ISOCENTER_S3_SECRET_KEY" }}
"""
    )
    address = cluster.s3.endpoint.partition("://")[2]
    client = Minio(address, cluster.s3.access_key, cluster.s3.secret_key, secure=False, region="us-east-1")
    client.make_bucket(OUTBOX)
    files = write_ct(folder / "announced", slices=5, seed=ANNOUNCED)
    for number, file in enumerate(files):
        client.fput_object(OUTBOX, f"studies/7/{number}.dcm", str(file))
    for replica in cluster.of("ingest"):
        replica.stop()
        replica.restart_with(ISOCENTER_INGEST_SOURCES_FILE=str(sources))
    for replica in cluster.of("ingest"):
        replica.wait_ready()
    command = [
        sys.executable,
        "deploy/examples/announce.py",
        *("--bootstrap", cluster.kafka.bootstrap, "--source", "/east", "--sender", "EAST"),
        *("--uid", uid_for(ANNOUNCED, "study"), "--kind", "s3", "--ref", f"s3://{OUTBOX}/studies/7"),
        *("--instances", str(len(files))),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _groups(cluster: Cluster) -> list[tuple[str, str]]:
    """Group and topic of every subscription of the services that run here."""
    return [
        (group, topic.name)
        for topic in TOPICS.values()
        for group in topic.consumers
        if cluster.of(group.partition(".")[0])
    ]


def _caught_up(cluster: Cluster) -> bool:
    """Committed up to the end, by the broker's own account."""
    return all(
        verdict.committed_lag(cluster.kafka.bootstrap, group, topic) == 0 for group, topic in _groups(cluster)
    )


async def _rewind(cluster: Cluster) -> None:
    transport = verdict.engines_of(cluster).open_transport()
    inspector = transport.inspector()
    try:
        for group, topic in _groups(cluster):
            await inspector.rewind(group, topic)
    finally:
        await inspector.close()
        await transport.close()


async def _records(cluster: Cluster) -> dict[str, int]:
    transport = verdict.engines_of(cluster).open_transport()
    inspector = transport.inspector()
    try:
        return await inspector.topics()
    finally:
        await inspector.close()
        await transport.close()
