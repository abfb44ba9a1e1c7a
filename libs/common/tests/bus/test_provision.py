"""Topics as code: the plan by itself, and what it does to a real cluster."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped] # no py.typed
from aiokafka.errors import (  # type: ignore[import-untyped] # as above
    KafkaTimeoutError,
    UnknownTopicOrPartitionError,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined] # its stubs export less than the package
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from isocenter.common.bus import access
from isocenter.common.bus.access import Acl, Operation, Pattern
from isocenter.common.bus.access import Resource as Guarded
from isocenter.common.bus.admin import connect
from isocenter.common.bus.provision import (
    Change,
    ChangeConfig,
    CreateTopic,
    PartitionsDiffer,
    ReplicationDiffers,
    TopicState,
    UnknownTopic,
    diff,
    missing,
    require,
    wanted,
    written_by,
)
from isocenter.common.errors import BusUnavailable, Misconfigured
from isocenter.common.events.topics import OTHER_SYSTEMS, TOPICS, Topic, all_topics
from isocenter.common.settings import KafkaSettings

if TYPE_CHECKING:
    from testbed.kafka import KafkaServer

CONFIG = {"retention.ms": "1000", "min.insync.replicas": "2"}
STUDY = TopicState("imaging.study.v1", 12, 3, CONFIG)


def has(**changes: object) -> dict[str, TopicState]:
    return {STUDY.name: replace(STUDY, **changes)}  # type: ignore[arg-type] # names are those of the fields


def test_an_equal_cluster_needs_nothing() -> None:
    more = {**CONFIG, "compression.type": "zstd"}

    assert [] == diff({STUDY.name: STUDY}, has(config=more))


@pytest.mark.parametrize(
    ("change", "state", "safe"),
    [
        (CreateTopic(STUDY), {}, True),
        (
            ChangeConfig(STUDY.name, "retention.ms", "5", "1000"),
            has(config=CONFIG | {"retention.ms": "5"}),
            True,
        ),
        (
            ChangeConfig(STUDY.name, "retention.ms", None, "1000"),
            has(config={"min.insync.replicas": "2"}),
            True,
        ),
        (PartitionsDiffer(STUDY.name, 6, 12), has(partitions=6), False),
        (ReplicationDiffers(STUDY.name, 4, 3), has(replication=4), False),
        (UnknownTopic("imaging.x"), has() | {"imaging.x": TopicState("imaging.x", 1, 1)}, False),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
def test_each_difference_is_named_and_only_safe_ones_are_made(
    change: Change, state: Mapping[str, TopicState], safe: bool
) -> None:
    assert [change] == diff({STUDY.name: STUDY}, state)
    assert safe is not bool(change.refusal)


def test_partitions_are_refused_both_ways_with_the_reason() -> None:
    more = PartitionsDiffer("t", 6, 12).refusal
    fewer = PartitionsDiffer("t", 24, 12).refusal

    assert "keys would move" in more
    assert "cannot take partitions away" in fewer
    assert "cannot take partitions away" not in more


def test_a_minimum_above_the_replicas_is_not_set_on_a_topic_that_has_fewer() -> None:
    """It would make the topic read-only."""
    state = has(replication=1, config={**CONFIG, "min.insync.replicas": "1"})

    changes = diff({STUDY.name: STUDY}, state)

    assert 2 == len(changes)
    assert all(change.refusal for change in changes)


def test_topics_of_others_are_none_of_our_business() -> None:
    others = {"orders.v1": TopicState("orders.v1", 1, 1), "__consumer_offsets": TopicState("__c", 50, 3)}

    assert [] == diff({STUDY.name: STUDY}, {**has(), **others})


def test_the_site_says_how_many_replicas() -> None:
    wants = wanted(KafkaSettings(replication_factor=5, min_insync_replicas=3))

    assert all_topics().keys() == wants.keys()
    assert {(5, "3")} == {(each.replication, each.config["min.insync.replicas"]) for each in wants.values()}


def test_a_minimum_that_no_cluster_of_this_size_can_meet_is_refused() -> None:
    with pytest.raises(Misconfigured, match="ISOCENTER_KAFKA_MIN_INSYNC_REPLICAS"):
        wanted(KafkaSettings(replication_factor=1, min_insync_replicas=2))


def test_a_service_that_lacks_topics_says_which_and_what_to_do() -> None:
    assert ["b", "c"] == missing(["c", "a", "b"], ["a", "z"])
    require(["a"], ["a", "z"])
    with pytest.raises(Misconfigured, match=r"no such topic.*: b, c; .*isocenter topics apply"):
        require(["c", "a", "b"], ["a"])


def test_a_service_that_only_writes_says_what_is_missing_before_it_takes_work() -> None:
    assert {
        "imaging.instance.v1",
        "inbound.study.v1.ingest.announced.retry",
        "inbound.study.v1.ingest.announced.dlq",
    } == written_by("ingest")
    assert {
        "imaging.study.v1",
        "imaging.instance.v1.indexer.instances.retry",
        "imaging.instance.v1.indexer.instances.dlq",
    } == written_by("indexer")
    assert {
        "imaging.study.v1",
        "imaging.study.v1.gpu-stager.studies.retry",
        "imaging.study.v1.gpu-stager.studies.dlq",
        "imaging.command.v1.gpu-stager.commands.retry",
        "imaging.command.v1.gpu-stager.commands.dlq",
    } == written_by("gpu-stager")


def test_every_service_gets_what_the_contract_says_and_no_more() -> None:
    acls = {(acl.principal, acl.operation, acl.resource, acl.name) for acl in access.wanted_acls()}
    ingest = {each[1:] for each in acls if each[0] == "User:isocenter-ingest"}
    indexer = {each[1:] for each in acls if each[0] == "User:isocenter-indexer"}
    source = "imaging.instance.v1"

    inbound = "inbound.study.v1"
    assert {
        (Operation.WRITE, Guarded.TOPIC, source),
        (Operation.READ, Guarded.TOPIC, inbound),
        (Operation.READ, Guarded.GROUP, "ingest.announced"),
        (Operation.READ, Guarded.TOPIC, f"{inbound}.ingest.announced.retry"),
        (Operation.WRITE, Guarded.TOPIC, f"{inbound}.ingest.announced.retry"),
        (Operation.READ, Guarded.GROUP, "ingest.announced.retry"),
        (Operation.WRITE, Guarded.TOPIC, f"{inbound}.ingest.announced.dlq"),
    } == ingest
    assert {
        (Operation.READ, Guarded.TOPIC, source),
        (Operation.READ, Guarded.GROUP, "indexer.instances"),
        (Operation.READ, Guarded.TOPIC, f"{source}.indexer.instances.retry"),
        (Operation.WRITE, Guarded.TOPIC, f"{source}.indexer.instances.retry"),
        (Operation.READ, Guarded.GROUP, "indexer.instances.retry"),
        (Operation.WRITE, Guarded.TOPIC, f"{source}.indexer.instances.dlq"),
        (Operation.WRITE, Guarded.TOPIC, "imaging.study.v1"),
    } == indexer


def test_a_stager_reads_commands_that_the_operator_gives() -> None:
    on_commands = {
        (acl.principal, acl.operation)
        for acl in access.wanted_acls()
        if acl.name in {"imaging.command.v1", "gpu-stager.commands"}
    }

    assert {
        ("User:isocenter-gpu-stager", Operation.READ),
        ("User:isocenter-operator", Operation.READ),
        ("User:isocenter-operator", Operation.WRITE),
    } == on_commands


def test_what_holds_uids_is_read_by_ingest_and_given_up_letters_by_the_operator() -> None:
    holding = {name for name, topic in all_topics().items() if topic.dicom_uids}
    on_uids = {
        (acl.principal, acl.operation, acl.name)
        for acl in access.wanted_acls()
        if acl.resource is Guarded.TOPIC and acl.name in holding
    }

    letters = "inbound.study.v1.ingest.announced.dlq"
    retries = "inbound.study.v1.ingest.announced.retry"
    assert {"User:isocenter-ingest", "User:isocenter-operator"} == {who for who, _, _ in on_uids}
    assert {(Operation.READ, letters), (Operation.WRITE, retries)} == {
        (operation, name) for who, operation, name in on_uids if who == "User:isocenter-operator"
    }


STUDY_TOPIC = TOPICS["imaging.study.v1"]


def test_another_system_announces_and_reads_facts_and_nothing_else() -> None:
    acls = access.system_acls("ris-east")

    assert {"User:isocenter-ris-east"} == {acl.principal for acl in acls}
    assert {(Operation.WRITE, "inbound.study.v1")} == {
        (acl.operation, acl.name) for acl in acls if acl.operation is Operation.WRITE
    }
    read = {acl.name for acl in acls if acl.operation is Operation.READ and acl.resource is Guarded.TOPIC}
    assert {name for name, topic in TOPICS.items() if OTHER_SYSTEMS not in topic.producers} == read
    assert [("ris-east.", Pattern.PREFIXED)] == [
        (acl.name, acl.pattern) for acl in acls if acl.resource is Guarded.GROUP
    ]


WANT = Acl("User:a", Guarded.TOPIC, "imaging.study.v1", Operation.READ)


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (WANT, True),
        (replace(WANT, principal="User:*"), True),
        (replace(WANT, operation=Operation.ALL), True),
        (replace(WANT, name="*"), True),
        (replace(WANT, name="imaging.", pattern=Pattern.PREFIXED), True),
        (replace(WANT, principal="User:b"), False),
        (replace(WANT, operation=Operation.WRITE), False),
        (replace(WANT, name="imaging.study.v2"), False),
        (replace(WANT, name="inbound.", pattern=Pattern.PREFIXED), False),
        (replace(WANT, resource=Guarded.GROUP), False),
        (replace(WANT, allow=False), False),
    ],
)
def test_a_rule_allows_what_kafka_would_allow(rule: Acl, allowed: bool) -> None:
    assert allowed is not bool(access.compare([WANT], [rule]).missing)


def test_a_deny_wins_and_describe_is_implied() -> None:
    deny = replace(WANT, operation=Operation.ALL, principal="User:*", allow=False)
    describe = replace(WANT, operation=Operation.DESCRIBE)

    assert (WANT,) == access.compare([WANT], [WANT, deny]).denied
    assert access.compare([describe], [WANT]).equal
    assert not access.compare([describe], [WANT, deny]).equal


def test_rules_that_nothing_needs_are_shown() -> None:
    stranger = Acl("User:x", Guarded.TOPIC, "inbound.study.v1", Operation.READ)
    elsewhere = Acl("User:x", Guarded.TOPIC, "orders.v1", Operation.READ)

    assert (stranger,) == access.compare([WANT], [WANT, stranger, elsewhere]).extra


# --- against a real cluster


def settings_of(server: KafkaServer) -> KafkaSettings:
    return KafkaSettings(bootstrap=server.bootstrap, replication_factor=1, min_insync_replicas=1)


def own(*names: str) -> list[Topic]:
    """Topics under a prefix of this test's own, so that tests share a broker."""
    prefix = f"t{uuid.uuid4().hex[:8]}"
    return [replace(STUDY_TOPIC, name=f"{prefix}.{name}", partitions=3, consumers=()) for name in names]


async def test_what_is_missing_is_created_and_a_second_time_changes_nothing(
    kafka_server: KafkaServer,
) -> None:
    settings = settings_of(kafka_server)
    wants = wanted(settings, own("a.v1", "b.v1"))

    async with connect(settings) as cluster:
        before = diff(wants, await cluster.topics())
        left = await cluster.settle(wants)
        again = diff(wants, await cluster.topics())
        assert [] == await cluster.settle(wants)
        state = await cluster.topics(wants)

    assert [CreateTopic(wants[name]) for name in sorted(wants)] == before
    assert [] == left == again
    for name, want in wants.items():
        assert (want.partitions, want.replication) == (state[name].partitions, state[name].replication)
        assert want.config.items() <= state[name].config.items()


async def test_two_who_apply_at_once_do_no_harm(kafka_server: KafkaServer) -> None:
    settings = settings_of(kafka_server)
    wants = wanted(settings, own("a.v1", "b.v1", "c.v1"))

    async with connect(settings) as one, connect(settings) as two:
        for left in await asyncio.gather(one.settle(wants), two.settle(wants)):
            assert [] == left


async def test_a_setting_is_corrected_and_one_of_the_operators_is_kept(
    kafka_server: KafkaServer, until: Callable[..., Awaitable[None]]
) -> None:
    settings = settings_of(kafka_server)
    (topic,) = own("a.v1")
    wants = wanted(settings, [topic])
    async with connect(settings) as cluster:
        await cluster.settle(wants)
        altered = [
            ConfigEntry("retention.ms", "777", incremental_operation=AlterConfigOpType.SET),
            ConfigEntry("segment.ms", "86400000", incremental_operation=AlterConfigOpType.SET),
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic.name, incremental_configs=altered)
        admin = AdminClient({"bootstrap.servers": kafka_server.bootstrap})
        for future in admin.incremental_alter_configs([resource]).values():
            future.result()
        changes: list[Change] = []

        async def differs() -> bool:
            changes[:] = diff(wants, await cluster.topics())
            return bool(changes)

        await until(differs)
        left = await cluster.settle(wants)
        state = (await cluster.topics([topic.name]))[topic.name]

    kept = str(topic.retention.days * 86_400_000)
    assert [ChangeConfig(topic.name, "retention.ms", "777", kept)] == changes
    assert [] == left
    assert (kept, "86400000") == (state.config["retention.ms"], state.config["segment.ms"])


async def test_partitions_and_strangers_are_left_alone_and_said(
    kafka_server: KafkaServer, until: Callable[..., Awaitable[None]]
) -> None:
    settings = settings_of(kafka_server)
    (topic,) = own("a.v1")
    wants = wanted(settings, [topic])
    stranger = topic.name.replace(".a.", ".typo.")
    admin = AdminClient({"bootstrap.servers": kafka_server.bootstrap})
    async with connect(settings) as cluster:
        await cluster.settle(wants)
        admin.create_partitions([NewPartitions(topic.name, 5)])[topic.name].result()
        admin.create_topics([NewTopic(stranger, 1, 1)])[stranger].result()

        async def seen() -> bool:
            found = await cluster.topics([topic.name, stranger])
            return len(found) == 2 and found[topic.name].partitions == 5

        await until(seen)
        left = await cluster.settle(wants)
        state = await cluster.topics([topic.name, stranger])

    assert [PartitionsDiffer(topic.name, 5, 3), UnknownTopic(stranger)] == left
    assert (5, 1) == (state[topic.name].partitions, state[stranger].partitions)


async def test_what_is_refused_is_not_done(kafka_server: KafkaServer) -> None:
    settings = settings_of(kafka_server)
    (topic,) = own("a.v1")
    async with connect(settings) as cluster:
        await cluster.settle(wanted(settings, [topic]))
        left = await cluster.settle(wanted(KafkaSettings(), [topic]))
        state = (await cluster.topics([topic.name]))[topic.name]

    assert ["replication", "config"] == [change.kind for change in left]
    assert "1" == state.config["min.insync.replicas"]


async def test_too_few_brokers_is_the_sites_business_and_says_so(kafka_server: KafkaServer) -> None:
    settings = KafkaSettings(bootstrap=kafka_server.bootstrap)
    (topic,) = own("a.v1")

    async with connect(settings) as cluster:
        with pytest.raises(Misconfigured, match="replica") as caught:
            await cluster.settle(wanted(settings, [topic]))

    assert topic.name == caught.value.ids["topic"]


async def test_publishing_to_a_topic_that_is_not_provisioned_fails_and_creates_nothing(
    kafka_server: KafkaServer,
) -> None:
    settings = settings_of(kafka_server)
    (topic,) = own("a.v1")
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka_server.bootstrap, request_timeout_ms=1500, metadata_max_age_ms=1000
    )
    await producer.start()
    try:
        with pytest.raises((KafkaTimeoutError, UnknownTopicOrPartitionError)):
            await producer.send_and_wait(topic.name, b"x")
    finally:
        await producer.stop()

    async with connect(settings) as cluster:
        names = await cluster.topic_names()
        with pytest.raises(Misconfigured, match=f"no such topic.*: {topic.name};"):
            require([topic.name], names)
    assert topic.name not in names


async def test_nobody_there_is_said_to_be_nobody_there() -> None:
    with pytest.raises(BusUnavailable, match="cannot be reached"):
        async with connect(KafkaSettings(bootstrap="127.0.0.1:1")):
            pass


async def test_without_a_cluster_there_is_nothing_to_administer() -> None:
    with pytest.raises(Misconfigured, match="ISOCENTER_KAFKA_BOOTSTRAP"):
        async with connect(KafkaSettings(bootstrap=None)):
            pass


async def test_a_cluster_without_an_authorizer_has_no_access_lists(kafka_server: KafkaServer) -> None:
    async with connect(settings_of(kafka_server)) as cluster:
        assert None is await cluster.acls()
