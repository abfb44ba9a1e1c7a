"""An embedded site moves to Apache Kafka, mongod and radosgw, and back into a new directory."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from testbed.cache import must_be_available
from testbed.cluster import QUICK_SETTLING, Cluster
from testbed.server import ServerUnavailable
from tests.migrate.building import (
    QUICK,
    RECEIVING,
    dump,
    embedded,
    history,
    index_all,
    indexing,
    payloads,
    sending,
    unread,
)
from tests.migrate.killing import KILLED, Driver

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.migration.engine import Migration
from isocenter.cli.migration.report import is_signed
from isocenter.cli.migration.sides import Side, opened
from isocenter.common.bus.admin import connect
from isocenter.common.bus.embedded.log import Entry
from isocenter.common.bus.kafka import TopicPartition
from isocenter.common.bus.kafka_inspect import KafkaInspector
from isocenter.common.bus.provision import wanted
from isocenter.common.clock import SystemClock
from isocenter.common.errors import Misconfigured
from isocenter.common.events.topics import all_topics
from isocenter.common.index.records import SettleState
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.s3.bucket import ensure_bucket
from isocenter.common.settings import KafkaSettings, S3Settings

DLQ = "imaging.instance.v1.indexer.instances.dlq"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Engines of their own: the topics of the contract must be empty, and there is one set of them."""
    cluster = Cluster(tmp_path_factory.mktemp("engines"), ingest=0, indexer=0, gateway=0)
    try:
        cluster.start_engines()
    except ServerUnavailable as error:
        cluster.close()
        if must_be_available():
            pytest.fail(f"NOT RUN: {error}")
        pytest.skip(f"NOT RUN: {error}")
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
async def engines(servers: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, str]]:
    """An empty bucket, an empty database and empty topics, named by the environment."""
    environment = servers.environment | {
        "ISOCENTER_S3_BUCKET": f"isocenter-{secrets.token_hex(4)}",
        "ISOCENTER_MONGO_DATABASE": f"migrate-{secrets.token_hex(4)}",
    }
    # What is receiving does so for a minute: long enough for a test.
    for name in ("ISOCENTER_SITE_KEY_FILE", *QUICK_SETTLING):
        del environment[name]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kafka = KafkaSettings.load()
    async with connect(kafka) as admin:
        assert [] == await admin.settle(wanted(kafka))
    ensure_bucket(S3Settings.load(), object_lock=True)
    yield environment
    await asyncio.to_thread(delete_topics, servers.kafka.bootstrap)


def delete_topics(bootstrap: str) -> None:
    """With the offsets that groups have in them."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for done in admin.delete_topics(sorted(all_topics())).values():
        try:
            done.result(30)
        except KafkaException as error:
            assert "UNKNOWN_TOPIC" in str(error)  # noqa: PT017 - the test deleted it
    until = time.monotonic() + 30
    while all_topics().keys() & admin.list_topics(timeout=30).topics.keys():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def cluster(engines: dict[str, str], source: Side) -> Side:
    return Side.of_environment(source.engines.platform.data_dir, source.key_file)


def isocenter(*arguments: str | Path, data_dir: Path, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "isocenter.cli", *map(str, arguments), "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert expect == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_up_and_down_again(source: Side, cluster: Side, tmp_path: Path) -> None:
    """With the command itself. What comes back is the original: bytes, index and events."""
    data_dir = source.engines.platform.data_dir
    place = TopicPartition(DLQ, 0)
    now = int(SystemClock().now().timestamp() * 1000)
    async with opened(source) as site:
        log = site.events._log  # type: ignore[attr-defined] # an embedded one
        for body in (b"0", b"1"):
            await log.append_with(Entry(place, now, b"k", body, (("x-reason", b"r"),)), lambda _: None)
        await site.events.mark_replayed(place, 1)
    original = await payloads(source), await dump(source), await history(source)

    report = json.loads(isocenter("migrate", "up", "--json", "--read-back", data_dir=data_dir))

    assert report["equal"]
    assert is_signed(report, SiteKeys.load(source.key_file))
    assert [report] == [json.loads(path.read_text()) for path in data_dir.glob("migration-*.json")]
    assert original == (await payloads(cluster), await dump(cluster), await history(cluster))
    assert {"ingest.announced": 0, "indexer.instances": 0} == await unread(cluster)
    inspector = KafkaInspector(cluster.engines.kafka)
    assert [False, True] == [letter.replayed async for letter in inspector.dead_letters()]
    await inspector.close()

    down = tmp_path / "down"
    down.joinpath("keys").mkdir(parents=True)
    down.joinpath("keys", "site.key").write_bytes(source.key_file.read_bytes())
    down.joinpath("keys", "site.key").chmod(0o600)
    text = isocenter("migrate", "down", data_dir=down)

    back = embedded(down)
    assert "equal" in text
    assert original == (await payloads(back), await dump(back), await history(back))
    async with opened(back) as site:
        assert {1} == await site.events.replayed(place)


async def test_life_goes_on_in_the_cluster_and_after_it(source: Side, cluster: Side, target: Side) -> None:
    """Work in hand of the cluster is finished before it moves down."""
    await Migration(source, cluster).run()
    async with sending(cluster) as sender:
        await sender.send(RECEIVING, numbers=range(7, 8))
    await index_all(cluster, QUICK, receiving=0)

    async with opened(cluster) as site:
        study = await site.index.get_study(RECEIVING)
    assert study is not None
    assert (SettleState.SETTLED, 1, 3) == (study.state, study.version, study.instances)
    with pytest.raises(CommandError, match="objects that the source lacks"):
        await Migration(source, cluster).run()

    async with sending(cluster) as sender:
        await sender.send(RECEIVING, numbers=range(20, 24))
    report = await Migration(cluster, target).run()

    assert report.equal, json.dumps(report.as_json())
    async with opened(target) as site:
        study = await site.index.get_study(RECEIVING)
    assert study is not None
    assert (SettleState.RECEIVING, 1, 7) == (study.state, study.version, study.instances)


async def test_a_cluster_with_running_services_is_left_alone(
    source: Side, cluster: Side, target: Side
) -> None:
    async with indexing(cluster, QUICK):
        for migration in (Migration(source, cluster), Migration(cluster, target)):
            with pytest.raises(CommandError, match=r"services of the .* are running") as refused:
                await migration.run()
            assert refused.value.code == Exit.BUSY


async def test_kills_on_the_way_up(
    source: Side, cluster: Side, engines: dict[str, str], process: subprocess.Popen[str]
) -> None:
    driver = Driver(process, source, cluster, engines)
    for moment in (("objects", 3), ("objects", 15), ("events", 12), ("events", 30), ("index", 2)):
        assert KILLED == driver.run(kill_at=moment)["status"], moment

    assert 0 == driver.run()["status"]
    assert await payloads(source) == await payloads(cluster)
    assert await dump(source) == await dump(cluster)
    assert await history(source) == await history(cluster)


async def test_topics_that_are_not_there_are_named(source: Side, cluster: Side, servers: Cluster) -> None:
    await asyncio.to_thread(delete_topics, servers.kafka.bootstrap)

    with pytest.raises(Misconfigured, match="isocenter topics apply"):
        await Migration(source, cluster).run()


async def test_a_bucket_of_another_site_is_refused(source: Side, cluster: Side) -> None:
    async with opened(cluster) as site:
        await site.store.put("site/" + SiteKeys(os.urandom(32)).fingerprint(), b"")

    with pytest.raises(CommandError, match="another site's data"):
        await Migration(source, cluster).run()
