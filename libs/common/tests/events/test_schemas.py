"""Committed schemas equal the models, and every example of every minor still holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydicom._dicom_dict import DicomDictionary

from isocenter.common.events import codec, generate
from isocenter.common.events.compatibility import ANNOTATIONS, breaks
from isocenter.common.events.models import EVENT_MODELS, Event

MODELS = sorted(EVENT_MODELS.values(), key=lambda model: model.event_type)
MINORS = [(model, minor) for model in MODELS for minor in range(model.schema_minor + 1)]
NAMES = [f"{generate.short_name(model.event_type)}.{minor}" for model, minor in MINORS]

# Names of DICOM attributes that an event may carry: they name a class, an encoding, an outcome or an urgency.
ALLOWED_KEYWORDS = {"sop_class_uid", "transfer_syntax_uid", "status", "modality", "priority"}
# The one exception, and the one topic it may be on: another system has no key of ours.
INBOUND = "inbound.study.v1"
INBOUND_KEYWORDS = {"study_instance_uid", "location"}  # `location` is no (0020,0050)
OWN_MODELS = [model for model in MODELS if model.topic != INBOUND]


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_committed_schema_is_the_one_the_model_gives(model: type[Event]) -> None:
    """If this fails: python -m isocenter.common.events.generate, and read docs/event-contract.md first."""
    assert generate.text(generate.schema(model)) == generate.schema_path(model).read_text()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_changed_schema_has_a_new_minor(model: type[Event]) -> None:
    """The file in `history` was written with the minor's first form: raise `schema_minor` after a change."""
    first = read(generate.history_path(model, model.schema_minor))

    assert _without_annotations(first) == _without_annotations(generate.schema(model))


@pytest.mark.parametrize(("model", "minor"), MINORS, ids=NAMES)
def test_today_breaks_nothing_for_those_who_know_an_earlier_minor(model: type[Event], minor: int) -> None:
    assert [] == breaks(read(generate.history_path(model, minor)), generate.schema(model))


@pytest.mark.parametrize(("model", "minor"), MINORS, ids=NAMES)
def test_an_example_of_any_minor_validates_against_todays_schema(model: type[Event], minor: int) -> None:
    data = read(generate.example_path(model, minor))["data"]

    validator(generate.schema(model)).validate(data)
    validator(read(generate.history_path(model, minor))).validate(data)


@pytest.mark.parametrize(("model", "minor"), MINORS, ids=NAMES)
def test_an_example_of_any_minor_is_read_by_todays_code(model: type[Event], minor: int) -> None:
    path = generate.example_path(model, minor)

    event = codec.decode([("content-type", b"application/cloudevents+json")], path.read_bytes())

    assert isinstance(event.data, model)
    assert read(path).get("subject", "") == event.subject
    assert read(path)["dataschema"].endswith(f":1.{minor}")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_newest_example_is_what_todays_code_writes(model: type[Event]) -> None:
    document = read(generate.example_path(model, model.schema_minor))
    event = codec.decode([("content-type", b"application/cloudevents+json")], json.dumps(document).encode())

    headers, body = codec.encode(event)

    attributes = {
        name.removeprefix("ce_"): value.decode() for name, value in headers if name.startswith("ce_")
    }
    assert {name: value for name, value in document.items() if name not in {"data", "datacontenttype"}} == (
        attributes
    )
    assert document["data"] == json.loads(body)


def test_no_file_is_left_over_from_a_type_that_is_gone() -> None:
    known = {generate.schema_path(model) for model in MODELS}
    known |= {generate.history_path(model, minor) for model, minor in MINORS}
    known |= {generate.example_path(model, minor) for model, minor in MINORS}

    found = {*generate.SCHEMAS.rglob("*.json"), *generate.EXAMPLES.rglob("*.json")}

    assert known == found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_schemas_are_valid_closed_and_have_a_stable_identity(model: type[Event]) -> None:
    schema = generate.schema(model)

    Draft202012Validator.check_schema(schema)
    assert codec.schema_uri(model) == schema["$id"]
    objects = [schema, *(each for each in schema.get("$defs", {}).values() if each["type"] == "object")]
    assert all(each["additionalProperties"] is False for each in objects)
    example = read(generate.example_path(model, model.schema_minor))["data"]
    assert validator(schema).is_valid(example)
    assert not validator(schema).is_valid(example | {"patient_name": "DOE^JANE"})


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_enumeration_can_grow(model: type[Event]) -> None:
    enumerations = [node["enum"] for node in _nodes(generate.schema(model)) if "enum" in node]

    assert all("unknown" in values for values in enumerations)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_text_is_bounded_by_a_pattern_a_format_or_a_list(model: type[Event]) -> None:
    """Free text is where patient data hide."""
    texts = [node for node in _nodes(generate.schema(model)) if node.get("type") == "string"]

    assert all(text.keys() & {"pattern", "format", "enum"} for text in texts)


def test_no_field_is_named_like_a_dicom_attribute() -> None:
    keywords = {entry[4].lower() for entry in DicomDictionary.values() if entry[4]}
    assert {"patientname", "studyinstanceuid", "accessionnumber", "studydate"} <= keywords

    assert ALLOWED_KEYWORDS == _named(OWN_MODELS, keywords)
    assert INBOUND_KEYWORDS == _named([model for model in MODELS if model.topic == INBOUND], keywords)


def test_no_field_name_contains_an_identifying_dicom_keyword() -> None:
    """`patient_name_hash` is no better than `patient_name`."""
    identifying = {
        entry[4].lower()
        for entry in DicomDictionary.values()
        if entry[0] in {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "DA", "DT", "TM", "UI"}
        and len(entry[4]) > len("Date")  # `updated_at` is no date of a patient
    }
    for model in MODELS:
        allowed = ALLOWED_KEYWORDS | (INBOUND_KEYWORDS if model.topic == INBOUND else set())
        named = _fields(generate.schema(model)) - allowed

        assert set() == {
            name for name in named for keyword in identifying if keyword in name.replace("_", "").lower()
        }


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    first = generate.write(tmp_path, tmp_path / "history")

    assert 2 * len(MODELS) == len(first)
    assert [] == generate.write(tmp_path, tmp_path / "history")


def test_generating_never_rewrites_history(tmp_path: Path) -> None:
    generate.write(tmp_path, tmp_path / "history")
    kept = next((tmp_path / "history").iterdir())
    kept.write_text("{}")

    assert [] == generate.write(tmp_path, tmp_path / "history")
    assert "{}" == kept.read_text()


def _without_annotations(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_annotations(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "properties" in node:
        node = node | {
            "properties": {name: _without_annotations(value) for name, value in node["properties"].items()}
        }
    return {
        name: value if name == "properties" else _without_annotations(value)
        for name, value in node.items()
        if name not in ANNOTATIONS or name == "$defs"
    }


def _nodes(node: Any) -> list[dict[str, Any]]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node] if isinstance(node, dict) else []
    return own + [found for child in children for found in _nodes(child)]


def _fields(schema: dict[str, Any]) -> set[str]:
    return {name for node in _nodes(schema) for name in node.get("properties", {})}


def _named(models: list[type[Event]], keywords: set[str]) -> set[str]:
    """Fields of these models, and of their examples, that are DICOM keywords."""
    named = {name for model in models for name in _fields(generate.schema(model))}
    named |= {
        name
        for model, minor in MINORS
        if model in models
        for name in _keys(read(generate.example_path(model, minor))["data"])
    }
    return {name for name in named if name.replace("_", "").lower() in keywords}


def _keys(document: Any) -> set[str]:
    return {name for node in _nodes(document) for name in node}
