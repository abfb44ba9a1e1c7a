"""docs/event-contract.md says what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.bus import records
from isocenter.common.events import codec, generate
from isocenter.common.events.models import (
    EVENT_MODELS,
    MAX_ANNOUNCEMENT_BYTES,
    CloudEvent,
    Event,
    InstancesStored,
)
from isocenter.common.events.topics import (
    COPY_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    OTHER_SYSTEMS,
    TOPICS,
    Topic,
    all_topics,
)

PAGE = (Path(__file__).parents[4] / "docs" / "event-contract.md").read_text(encoding="utf-8")
MODELS = sorted(EVENT_MODELS.values(), key=lambda model: model.event_type)


def row(topic: Topic) -> str:
    groups = ", ".join(f"`{group}`" for group in topic.consumers) or "-"
    return (
        f"| `{topic.name}` | {topic.partitions} | {topic.retention.days} days | `{topic.key}` "
        f"| {', '.join(topic.producers)} | {groups} |"
    )


def producer(model: type[Event]) -> str:
    """Who writes it, by the newest example: one of those who may write the topic."""
    producers = TOPICS[model.topic].producers
    if producers == (OTHER_SYSTEMS,):
        return OTHER_SYSTEMS
    source = json.loads(generate.example_path(model, model.schema_minor).read_text())["source"]
    name = str(source).removeprefix("/isocenter/")
    assert name in producers
    return name


def examples() -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)]


def test_the_table_of_topics_is_the_list_of_topics() -> None:
    listed = [line for line in PAGE.splitlines() if line.startswith(("| `imaging.", "| `inbound."))]

    assert [row(topic) for topic in all_topics().values()] == listed


def test_numbers_that_all_topics_share_are_those_of_the_page() -> None:
    assert {(3, 2, "delete")} == {
        (topic.replication_factor, topic.min_insync_replicas, topic.cleanup_policy)
        for topic in all_topics().values()
    }
    assert {MAX_MESSAGE_BYTES} == {topic.max_message_bytes for topic in TOPICS.values()}
    copies = [topic for name, topic in all_topics().items() if name not in TOPICS]
    assert {MAX_MESSAGE_BYTES + COPY_HEADER_BYTES} == {topic.max_message_bytes for topic in copies}
    assert "Replication 3, `min.insync.replicas` 2" in PAGE
    assert 1 << 20 == MAX_MESSAGE_BYTES
    assert "up to 1 MiB" in PAGE
    assert 64 << 10 == MAX_ANNOUNCEMENT_BYTES
    assert "up to 64 KiB" in PAGE


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_event_has_a_section_with_its_topic_and_schema(model: type[Event]) -> None:
    _, found, section = PAGE.partition(f"### `{model.event_type}`\n")

    assert found
    assert f"Topic `{model.topic}`, written by {producer(model)}." in section.partition("###")[0]
    assert f"`schemas/{generate.schema_path(model).name}`" in section.partition("###")[0]


def test_the_examples_are_the_committed_ones() -> None:
    shown = {example["type"]: example for example in examples()}

    assert len(MODELS) == len(examples())
    assert shown == {
        model.event_type: json.loads(generate.example_path(model, model.schema_minor).read_text())
        for model in MODELS
    }


def test_every_attribute_that_is_written_is_in_the_table() -> None:
    written = set[str]()
    for example in examples():
        envelope = [("content-type", codec.STRUCTURED_CONTENT_TYPE.encode())]
        event = codec.decode(envelope, json.dumps(example).encode())
        full = CloudEvent(**{**dict(event), "sequence": 1, "correlation_id": "a", "causation_id": "b"})
        headers, _ = codec.encode(full)
        written |= {name.removeprefix("ce_") for name, _ in headers if name.startswith("ce_")}

    listed = set(re.findall(r"^\| `([a-z]+)` \|", PAGE.partition("## Topics")[0], flags=re.MULTILINE))
    assert written | {"datacontenttype"} == listed


def test_the_headers_of_copies_are_those_of_the_bus() -> None:
    table = PAGE.partition("## Retries and dead letters")[2]

    assert {
        records.ORIGIN_TOPIC,
        records.ORIGIN_ID,
        records.REASON,
        records.ERROR,
        records.REPLAY_OF,
        records.REPLAYED,
    } == set(re.findall(r"^\| `(x-[a-z-]+)` \|", table, flags=re.MULTILINE))


def test_a_full_batch_fits_into_a_record_with_room_to_grow() -> None:
    example = json.loads(generate.example_path(InstancesStored, 0).read_text())
    data = example["data"] | {"instances": (example["data"]["instances"] * 200)[:200]}
    model = EVENT_MODELS[example["type"]].model_validate_json(json.dumps(data))

    size = len(model.model_dump_json().encode())

    assert 50_000 < size < 150_000
    assert size < MAX_MESSAGE_BYTES / 5
