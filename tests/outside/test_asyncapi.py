"""deploy/asyncapi.yaml: valid by the project's own schema, and equal to the code."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from tests.outside.conftest import ROOT

from isocenter.common.events import codec, generate
from isocenter.common.events.models import EVENT_MODELS, Event
from isocenter.common.events.topics import OTHER_SYSTEMS, TOPICS, all_topics

MODELS = sorted(EVENT_MODELS.values(), key=lambda model: model.event_type)
Document = dict[str, Any]


def at(document: Document, reference: str) -> Any:
    """What a local reference points to. Raises KeyError."""
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def resolved(node: Any, document: Document) -> Any:
    """The document with its references replaced, as its readers see it; schema files keep their own."""
    if isinstance(node, list):
        return [resolved(each, document) for each in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str):
        if reference.startswith("#/"):
            return resolved(at(document, reference), document)
        return json.loads((ROOT / "deploy" / reference).read_text())
    return {name: resolved(value, document) for name, value in node.items()}


def checkable(document: Document) -> Document:
    """The document with the references inside its messages replaced: the schema of the Kafka binding takes a
    reference for a schema as well, and so for neither. Elsewhere it insists on references.
    """
    return {**document, "components": resolved(document["components"], document)}


def messages(document: Document) -> dict[str, Document]:
    """By event type."""
    return {each["name"]: each for each in document["components"]["messages"].values()}


def test_it_is_valid_asyncapi(asyncapi_schema: Document, contract: Document) -> None:
    faults = [
        f"{'/'.join(map(str, fault.absolute_path))}: {fault.message[:200]}"
        for fault in Draft7Validator(asyncapi_schema).iter_errors(checkable(contract))
    ]

    assert [] == faults


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("operations", "announceStudy", "action"), "shout"),
        (("channels", "inboundStudy", "bindings", "kafka", "partitions"), 0),
        (("channels", "inboundStudy", "adress"), "inbound.study.v1"),
        (("components", "securitySchemes", "scram", "type"), "hope"),
    ],
)
def test_the_validator_finds_faults(
    path: tuple[str, ...], value: object, asyncapi_schema: Document, contract: Document
) -> None:
    document = copy.deepcopy(checkable(contract))
    assert Draft7Validator(asyncapi_schema).is_valid(document)

    at(document, "/".join(path[:-1]))[path[-1]] = value

    assert not Draft7Validator(asyncapi_schema).is_valid(document)


def test_every_reference_has_a_target(contract: Document) -> None:
    for reference in references(contract):
        if reference.startswith("#/"):
            at(contract, reference)
        else:
            assert (ROOT / "deploy" / reference).is_file(), reference


def test_the_channels_are_the_public_topics(contract: Document) -> None:
    channels = contract["channels"].values()

    assert sorted(TOPICS) == sorted(each["address"] for each in channels)
    for channel in channels:
        topic = TOPICS[channel["address"]]
        binding = channel["bindings"]["kafka"]
        config = {
            name: ",".join(value) if isinstance(value, list) else str(value)
            for name, value in binding["topicConfiguration"].items()
        }
        assert (topic.name, topic.partitions, topic.replication_factor, topic.kafka_config()) == (
            binding["topic"],
            binding["partitions"],
            binding["replicas"],
            config,
        )


def test_each_channel_carries_the_types_of_its_topic(contract: Document) -> None:
    for channel in contract["channels"].values():
        carried = [at(contract, each["$ref"])["name"] for each in channel["messages"].values()]

        assert sorted(TOPICS[channel["address"]].event_types) == sorted(carried)


def test_the_messages_are_the_events(contract: Document) -> None:
    assert sorted(EVENT_MODELS) == sorted(messages(contract))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_message_has_the_committed_schema_and_the_committed_example(
    model: type[Event], contract: Document
) -> None:
    message = messages(contract)[model.event_type]
    schema = message["payload"]["schema"]["$ref"]
    (example,) = message["examples"]
    committed = json.loads(generate.example_path(model, model.schema_minor).read_text())
    attributes = {f"ce_{name}": value for name, value in committed.items() if name != "data"}
    content_type = attributes.pop("ce_datacontenttype")

    assert generate.schema_path(model) == (ROOT / "deploy" / Path(schema)).resolve()
    assert committed["data"] == example["payload"]
    assert {**attributes, "content-type": content_type} == example["headers"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_examples_and_what_the_code_writes_are_valid(model: type[Event], contract: Document) -> None:
    message = resolved(messages(contract)[model.event_type], contract)
    (example,) = message["examples"]
    (trait,) = message["traits"]
    headers = validator(trait["headers"])

    headers.validate(example["headers"])
    validator(message["payload"]["schema"]).validate(example["payload"])
    record = [(name, value.encode()) for name, value in example["headers"].items()]
    event = codec.decode(record, json.dumps(example["payload"]).encode())
    assert isinstance(event.data, model)
    written, _ = codec.encode(event, traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    headers.validate({name: value.decode() for name, value in written})
    assert {name for name, _ in written} <= trait["headers"]["properties"].keys()


def test_keys_are_those_of_the_topics(contract: Document) -> None:
    for channel in contract["channels"].values():
        topic = TOPICS[channel["address"]]
        for reference in channel["messages"].values():
            key = at(contract, reference["$ref"])["bindings"]["kafka"]["key"]["$ref"].rpartition("/")[2]

            assert {"study_key": "studyKey", "any": "announcementKey"}[topic.key] == key
    schema = contract["components"]["schemas"]["studyKey"]
    assert (
        schema["pattern"]
        == generate.schema(EVENT_MODELS[MODELS[0].event_type])["properties"]["study_key"]["pattern"]
    )


def test_an_outsider_writes_what_other_systems_write_and_reads_the_rest(contract: Document) -> None:
    actions: dict[str, str] = {}
    for operation in contract["operations"].values():
        channel = at(contract, operation["channel"]["$ref"])
        actions[channel["address"]] = operation["action"]
        of_channel = {f"{operation['channel']['$ref']}/messages/{name}" for name in channel["messages"]}
        assert of_channel == {each["$ref"] for each in operation["messages"]}

    assert actions == {
        name: "send" if OTHER_SYSTEMS in topic.producers else "receive" for name, topic in TOPICS.items()
    }


def test_what_belongs_to_the_platform_is_not_there(contract: Document) -> None:
    text = json.dumps(contract)

    assert not [name for name in all_topics().keys() - TOPICS.keys() if name in text]


def validator(schema: Document) -> Draft202012Validator:
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)
