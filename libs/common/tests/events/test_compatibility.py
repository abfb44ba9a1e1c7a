"""The checker catches each kind of break, and lets each kind of addition pass."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from isocenter.common.events.compatibility import breaks

Schema = dict[str, Any]

EARLIER: Schema = {
    "$defs": {
        "Part": {
            "type": "object",
            "properties": {"size": {"type": "integer", "minimum": 0, "maximum": 10}},
            "required": ["size"],
            "additionalProperties": False,
        },
        "Colour": {"type": "string", "enum": ["red", "unknown"]},
        "Closed": {"type": "string", "enum": ["on", "off"]},
    },
    "type": "object",
    "properties": {
        "key": {"type": "string", "pattern": "^[a-z]+$"},
        "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}], "default": None},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}, "minItems": 1},
        "colour": {"$ref": "#/$defs/Colour"},
        "switch": {"$ref": "#/$defs/Closed"},
        "at": {"type": "string", "format": "date-time"},
    },
    "required": ["key", "parts"],
    "additionalProperties": False,
}


def rename(schema: Schema) -> None:
    schema["properties"]["identity"] = schema["properties"].pop("key")
    schema["required"] = ["identity", "parts"]


BREAKS: dict[str, tuple[Callable[[Schema], object], str]] = {
    "removed": (lambda s: s["properties"].pop("note"), "data.note: removed"),
    "renamed": (rename, "data.key: removed"),
    "retyped": (
        lambda s: s["properties"]["key"].update(type="integer"),
        "data.key: retyped (type)",
    ),
    "newly required, known": (lambda s: s["required"].append("note"), "data.note: newly required"),
    "newly required, new": (
        lambda s: (s["properties"].update(extra={"type": "string"}), s["required"].append("extra")),
        "data.extra: newly required",
    ),
    "no longer required": (lambda s: s["required"].remove("key"), "data.key: no longer required"),
    "pattern narrowed": (
        lambda s: s["properties"]["key"].update(pattern="^[a-c]+$"),
        "data.key: constraint changed (pattern)",
    ),
    "pattern added": (
        lambda s: s["properties"]["at"].update(pattern="Z$"),
        "data.at: constraint changed (pattern)",
    ),
    "format dropped": (
        lambda s: s["properties"]["at"].pop("format"),
        "data.at: constraint changed (format)",
    ),
    "nested maximum narrowed": (
        lambda s: s["$defs"]["Part"]["properties"]["size"].update(maximum=9),
        "data.parts[].size: constraint changed (maximum)",
    ),
    "nested minimum widened": (
        lambda s: s["$defs"]["Part"]["properties"]["size"].update(minimum=-1),
        "data.parts[].size: constraint changed (minimum)",
    ),
    "nested removed": (
        lambda s: (s["$defs"]["Part"]["properties"].clear(), s["$defs"]["Part"]["required"].clear()),
        "data.parts[].size: removed",
    ),
    "list shortened": (
        lambda s: s["properties"]["parts"].update(maxItems=3),
        "data.parts: constraint changed (maxItems)",
    ),
    "items dropped": (lambda s: s["properties"]["parts"].pop("items"), "data.parts: retyped (items)"),
    "value removed": (
        lambda s: s["$defs"]["Colour"]["enum"].remove("red"),
        'data.colour: value removed ("red")',
    ),
    "value added to a closed list": (
        lambda s: s["$defs"]["Closed"]["enum"].append("dimmed"),
        'data.switch: value added where earlier readers have no `unknown` ("dimmed")',
    ),
    "list of values dropped": (
        lambda s: s["$defs"]["Colour"].pop("enum"),
        "data.colour: constraint changed (enum)",
    ),
    "choice narrowed": (
        lambda s: s["properties"]["note"]["anyOf"][0].update(maxLength=4),
        "data.note: constraint changed (maxLength)",
    ),
    "null no longer allowed": (
        lambda s: s["properties"]["note"]["anyOf"].pop(),
        "data.note: retyped (anyOf)",
    ),
    "opened": (lambda s: s.pop("additionalProperties"), "data: constraint changed (additionalProperties)"),
}

ADDITIONS: dict[str, Callable[[Schema], object]] = {
    "nothing": lambda s: None,
    "optional field": lambda s: s["properties"].update(extra={"type": "string", "default": ""}),
    "optional nested field": lambda s: s["$defs"]["Part"]["properties"].update(x={"type": "integer"}),
    "value where readers map to unknown": lambda s: s["$defs"]["Colour"]["enum"].append("blue"),
    "better words": lambda s: s["properties"]["key"].update(title="Key", description="What it is"),
    "definition renamed": lambda s: (
        s["$defs"].update(Piece=s["$defs"].pop("Part")),
        s["properties"]["parts"]["items"].update({"$ref": "#/$defs/Piece"}),
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_break_is_caught_and_named(kind: str) -> None:
    change, expected = BREAKS[kind]
    today = copy.deepcopy(EARLIER)
    change(today)

    assert expected in breaks(EARLIER, today)


@pytest.mark.parametrize("kind", ADDITIONS)
def test_an_addition_is_no_break(kind: str) -> None:
    today = copy.deepcopy(EARLIER)
    ADDITIONS[kind](today)

    assert [] == breaks(EARLIER, today)


def test_a_schema_that_refers_to_itself_is_walked_once() -> None:
    tree: Schema = {
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {"child": {"$ref": "#/$defs/Node"}, "n": {"type": "integer"}},
            }
        },
        "$ref": "#/$defs/Node",
    }
    today = copy.deepcopy(tree)
    today["$defs"]["Node"]["properties"]["n"]["type"] = "string"

    assert ["data.n: retyped (type)"] == breaks(tree, today)
