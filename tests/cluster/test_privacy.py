"""The canary study on the real engines: found in the index, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pytest
from testbed.cluster import Cluster
from testbed.otlp import OtlpSink
from tests.cluster.helpers import until
from tests.cluster.verdict import engines_of
from tests.privacy import canary
from tests.privacy.canary import UIDS, Search
from tests.privacy.scenario import (
    Target,
    ask,
    ask_for_commitment,
    poison,
    store_over_dimse,
    store_over_stow,
)

REFUSED = {"unknown study", "refused instance", "poison instance"}
ENVIRONMENT = {"ISOCENTER_LOG_LEVEL": "debug", "ISOCENTER_INDEXER_QUIET_SECONDS": "1"}


@dataclass
class Seen:
    """Everything that left the services, and what the engines hold."""

    answers: list[bytes]
    logs: bytes = b""
    metrics: bytes = b""
    telemetry: bytes = b""
    servers: dict[str, bytes] = field(default_factory=dict)
    """What the servers themselves wrote to their logs."""
    topics: dict[str, list[bytes]] = field(default_factory=dict)
    objects: list[bytes] = field(default_factory=list)
    object_names: list[str] = field(default_factory=list)
    index: str = ""


@pytest.fixture(scope="module")
def seen(
    tmp_path_factory: pytest.TempPathFactory, new_cluster: Callable[..., AbstractContextManager[Cluster]]
) -> Seen:
    """The scenario on a cluster of its own: DIMSE to one replica of ingest, STOW-RS to the other."""
    with OtlpSink() as sink:
        environment = {**ENVIRONMENT, "ISOCENTER_OTLP_ENDPOINT": sink.url}
        with new_cluster(tmp_path_factory.mktemp("privacy"), environment=environment) as cluster:
            first, second = cluster.of("ingest")
            target = Target(
                first.dicom_port,
                cluster.ae_title,
                f"http://127.0.0.1:{second.http_port}/dicom-web",
                cluster.dicom_web,
            )
            store_over_dimse(target)
            found = Seen(store_over_stow(target) + ask_for_commitment(target))
            cluster.instances(f"/dicom-web/studies/{UIDS['study']}", at_least=3)
            found.answers += ask(target)
            asyncio.run(_poison(cluster))
            until(
                lambda: b"event.dead_lettered" in b"".join(path.read_bytes() for path in cluster.logs()),
                "the poison did not become a dead letter",
            )
            found.answers += ask(target)
            found.metrics = b"".join(each.health("/metrics")[1].encode() for each in cluster.replicas)
            asyncio.run(_read_back(cluster, found))
            for replica in cluster.replicas:
                replica.stop()
            found.logs = b"".join(path.read_bytes() for path in cluster.logs())
            found.telemetry = b"".join(sink.bodies)
            found.servers = {
                server.name: b"".join(path.read_bytes() for path in server.folder.rglob("*.out"))
                for server in (cluster.kafka, cluster.mongo, cluster.s3)
            }
    return found


def test_the_canary_is_where_it_may_be(seen: Seen) -> None:
    """In the index: finding nothing elsewhere means something. Objects are sealed, but for the poison."""
    accepted = set(canary.CANARIES) - REFUSED - {"transaction"}
    poison, sealed = canary.poison_and_others(seen.objects)
    assert 1 == len(poison)
    assert len(sealed) >= 4
    assert set() == Search().hits(*sealed)
    assert accepted - {"other name", "private", "institution"} <= Search().hits(seen.index)


def test_no_record_of_any_topic_holds_it(seen: Seen) -> None:
    assert {"imaging.instance.v1", "imaging.study.v1"} <= {
        name for name, parts in seen.topics.items() if parts
    }
    assert any(name.endswith(".dlq") and parts for name, parts in seen.topics.items())
    assert {} == {name: hits for name, parts in seen.topics.items() if (hits := Search().hits(*parts))}


def test_no_log_line_holds_it(seen: Seen) -> None:
    assert b"event.dead_lettered" in seen.logs
    assert set() == Search().hits(seen.logs)


def test_nothing_exported_over_otlp_holds_it(seen: Seen) -> None:
    assert b"isocenter.study_key" in seen.telemetry
    assert set() == Search().hits(seen.telemetry)


def test_no_metric_holds_it(seen: Seen) -> None:
    assert b"isocenter" in seen.metrics
    assert set() == Search().hits(seen.metrics)


def test_no_object_name_or_metadata_holds_it(seen: Seen) -> None:
    assert seen.object_names
    assert set() == Search().hits(*seen.object_names)


def test_no_answer_that_refuses_repeats_what_was_asked(seen: Seen) -> None:
    assert seen.answers
    assert set() == Search().hits(*seen.answers)


def test_the_servers_did_not_log_it(seen: Seen) -> None:
    """An access log of the object gateway, or a query that MongoDB logs, would be a copy of PHI.

    Two replicas that write one study at once make mongod warn of a conflict, and it quotes the `_id` that it
    looked for: a Study Instance UID. So its log is to be protected like the database, as the changelog says;
    names, numbers and dates of patients are not in it even so.
    """
    found = {name: Search().hits(content) for name, content in seen.servers.items()}
    found["mongod"] -= UIDS.keys()
    assert {key: set[str]() for key in seen.servers} == found


async def _poison(cluster: Cluster) -> None:
    engines = engines_of(cluster)
    store, transport = await engines.open_store(), engines.open_transport()
    try:
        await poison(await engines.open_keys(), store, transport)
    finally:
        await transport.close()
        await store.close()


async def _read_back(cluster: Cluster, seen: Seen) -> None:
    engines = engines_of(cluster)
    store, index, transport = await engines.open_store(), await engines.open_index(), engines.open_transport()
    try:
        inspector = transport.inspector()
        for topic in await inspector.topics():
            parts = seen.topics.setdefault(topic, [])
            async for record in inspector.read(topic):
                parts += [record.key or b"", record.value or b"", repr(record.headers).encode()]
        await inspector.close()
        async for info in store.list():
            seen.object_names.append(f"{info.key} {dict(info.metadata)}")
            if info.key.startswith("instances/"):
                seen.objects.append(await store.get(info.key))
        seen.index = "\n".join([line async for line in index.dump()])
    finally:
        await transport.close()
        await index.close()
        await store.close()
