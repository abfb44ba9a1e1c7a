"""Topics are data that provisioning, the embedded log and the documentation share."""

import re
from datetime import timedelta

import pytest

from isocenter.common.bus.client import RETRY_GROUP_SUFFIX
from isocenter.common.events.models import EVENT_MODELS
from isocenter.common.events.topics import (
    OTHER_SYSTEMS,
    TOPICS,
    Topic,
    all_topics,
    derived,
    dlq_topic,
    retry_group,
    retry_topic,
    topic_of,
)


def test_every_event_type_has_its_topic_and_every_topic_lists_its_types() -> None:
    listed = {(name, kind) for name, topic in TOPICS.items() for kind in topic.event_types}

    assert {(model.topic, model.event_type) for model in EVENT_MODELS.values()} == listed


def test_topic_of_finds_the_topic_of_a_type() -> None:
    assert all(topic_of(kind) == model.topic for kind, model in EVENT_MODELS.items())
    with pytest.raises(KeyError):
        topic_of("org.example.other.v1")


def test_each_consumer_group_has_a_retry_and_a_dead_letter_topic() -> None:
    names = all_topics().keys()

    for topic in TOPICS.values():
        for group in topic.consumers:
            assert {retry_topic(topic.name, group), dlq_topic(topic.name, group)} <= names
    assert len(names) == len(TOPICS) + 2 * sum(len(topic.consumers) for topic in TOPICS.values())


@pytest.mark.parametrize("name", sorted(all_topics()))
def test_names_are_legal_and_cannot_collide_in_metric_names(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9.-]{1,249}", name)


def test_source_topics_end_in_the_major_version_of_their_types() -> None:
    for name, topic in TOPICS.items():
        assert {name.rpartition(".")[2]} == {kind.rpartition(".")[2] for kind in topic.event_types}


@pytest.mark.parametrize("name", sorted(all_topics()))
def test_partitions_of_derived_topics_divide_those_of_the_source(name: str) -> None:
    topic = all_topics()[name]

    assert max(source.partitions for source in TOPICS.values()) % topic.partitions == 0


@pytest.mark.parametrize("name", sorted(all_topics()))
def test_an_acknowledged_record_outlives_a_broker(name: str) -> None:
    topic = all_topics()[name]

    assert 1 < topic.min_insync_replicas < topic.replication_factor


def test_dead_letters_wait_longer_than_people_take() -> None:
    letters = [topic for name, topic in all_topics().items() if name.endswith(".dlq")]

    assert letters
    assert all(topic.retention.days >= 30 for topic in letters if not topic.dicom_uids)


def test_dicom_uids_are_on_the_inbound_topic_and_nowhere_else() -> None:
    named = {name for name, model in EVENT_MODELS.items() if "study_instance_uid" in model.model_fields}

    inbound = TOPICS["inbound.study.v1"]
    allowed = {inbound.name, *(copy.name for copy in derived(inbound))}
    assert allowed == {name for name, topic in all_topics().items() if topic.dicom_uids}
    assert set(TOPICS["inbound.study.v1"].event_types) == named


def test_copies_of_what_names_a_study_do_not_outlive_it() -> None:
    inbound = Topic(
        name="inbound.x.v1",
        owner="ingest",
        producers=(OTHER_SYSTEMS,),
        consumers=("ingest.x",),
        retention=timedelta(days=14),
        dicom_uids=True,
    )

    copies = list(derived(inbound))

    assert {retry_topic("inbound.x.v1", "ingest.x"), dlq_topic("inbound.x.v1", "ingest.x")} == {
        copy.name for copy in copies
    }
    assert all(copy.dicom_uids and copy.retention <= inbound.retention for copy in copies)


def test_what_other_systems_write_no_service_writes() -> None:
    written = {name for name, topic in TOPICS.items() if OTHER_SYSTEMS in topic.producers}

    assert {name for name in TOPICS if name.startswith("inbound.")} == written
    assert all(TOPICS[name].producers == (OTHER_SYSTEMS,) for name in written)


def test_settings_are_in_kafkas_units() -> None:
    config = TOPICS["imaging.instance.v1"].kafka_config()

    assert str(30 * 24 * 3600 * 1000) == config["retention.ms"]
    assert "delete" == config["cleanup.policy"]


def test_a_retry_topic_names_the_group_that_the_bus_reads_it_with() -> None:
    for topic in TOPICS.values():
        for group in topic.consumers:
            readers = all_topics()[retry_topic(topic.name, group)].consumers

            assert (group + RETRY_GROUP_SUFFIX,) == (retry_group(group),) == readers
