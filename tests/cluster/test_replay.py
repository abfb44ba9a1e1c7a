"""Every topic again from its first record, on the real engines: nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from testbed.cluster import Cluster
from tests.cluster import verdict
from tests.cluster.helpers import send, settled, until

from isocenter.cli.synth import uid_for, write_ct
from isocenter.common.events.topics import TOPICS

STUDIES = 4


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
        yield cluster


def test_replaying_every_topic_from_the_beginning_changes_nothing(filled: Cluster) -> None:
    before, events = asyncio.run(verdict.dump(filled)), asyncio.run(_records(filled))
    for replica in filled.of("indexer"):
        replica.stop()

    asyncio.run(_rewind(filled))
    for replica in filled.of("indexer"):
        replica.launch()
    for replica in filled.of("indexer"):
        replica.wait_ready()
    until(lambda: _caught_up(filled), "the consumers did not catch up")

    assert before == asyncio.run(verdict.dump(filled))
    assert events == asyncio.run(_records(filled))


def test_a_rebuilt_index_equals_the_one_that_was_there(filled: Cluster) -> None:
    kept = asyncio.run(verdict.dump(filled))
    report = filled.isocenter_json("reindex", environment={"ISOCENTER_MONGO_DATABASE": "anew"})

    assert STUDIES == report["studies"] == report["settled"]
    assert kept == asyncio.run(verdict.dump(filled, "anew"))


def _caught_up(cluster: Cluster) -> bool:
    """Committed up to the end, by the broker's own account."""
    return all(
        verdict.committed_lag(cluster.kafka.bootstrap, group, topic.name) == 0
        for topic in TOPICS.values()
        for group in topic.consumers
    )


async def _rewind(cluster: Cluster) -> None:
    transport = verdict.engines_of(cluster).open_transport()
    inspector = transport.inspector()
    try:
        for topic in TOPICS.values():
            for group in topic.consumers:
                await inspector.rewind(group, topic.name)
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
