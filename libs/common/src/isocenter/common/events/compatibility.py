"""Proves that a schema may follow an earlier one inside the same major version.

Full transitive compatibility: today's reader understands every earlier event (replays, dead letters), and an
earlier reader understands today's (foreign consumers upgrade when they like). So constraints may neither be
narrowed nor widened; only optional properties and enumeration values may be added, the latter where readers
map what they do not know to `unknown`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$defs", "$comment", "title", "description", "examples", "default", "deprecated"}
)
_WALKED = frozenset({"$ref", "properties", "required", "enum", "items", "anyOf"})


def breaks(earlier: Schema, today: Schema) -> list[str]:
    """What today's schema breaks for those who know the earlier one; empty when nothing."""
    return list(_breaks(earlier, today, earlier, today, "data", frozenset()))


def _breaks(
    old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str, seen: frozenset[str]
) -> Iterator[str]:
    if "$ref" in old and "$ref" in new:
        pair = f"{old['$ref']} {new['$ref']}"
        if pair in seen:
            return
        seen |= {pair}
    old, new = _resolved(old, old_root), _resolved(new, new_root)

    for keyword in sorted((old.keys() | new.keys()) - ANNOTATIONS - _WALKED):
        if old.get(keyword) != new.get(keyword):
            verb = "retyped" if keyword == "type" else "constraint changed"
            yield f"{path}: {verb} ({keyword})"

    yield from _enumeration(old.get("enum"), new.get("enum"), path)

    old_required, new_required = set(old.get("required", ())), set(new.get("required", ()))
    old_properties, new_properties = old.get("properties", {}), new.get("properties", {})
    for name in sorted(old_properties.keys() - new_properties.keys()):
        yield f"{path}.{name}: removed"
    for name in sorted(new_required - old_required):
        yield f"{path}.{name}: newly required"
    for name in sorted((old_required - new_required) & new_properties.keys()):
        yield f"{path}.{name}: no longer required"
    for name in sorted(old_properties.keys() & new_properties.keys()):
        yield from _breaks(
            old_properties[name], new_properties[name], old_root, new_root, f"{path}.{name}", seen
        )

    yield from _nested(old, new, old_root, new_root, path, seen)


def _nested(
    old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str, seen: frozenset[str]
) -> Iterator[str]:
    if ("items" in old) != ("items" in new):
        yield f"{path}: retyped (items)"
    elif "items" in old:
        yield from _breaks(old["items"], new["items"], old_root, new_root, f"{path}[]", seen)
    old_choices, new_choices = old.get("anyOf", ()), new.get("anyOf", ())
    if len(old_choices) != len(new_choices):
        yield f"{path}: retyped (anyOf)"
        return
    for old_choice, new_choice in zip(old_choices, new_choices, strict=True):
        yield from _breaks(old_choice, new_choice, old_root, new_root, path, seen)


def _enumeration(old: list[Any] | None, new: list[Any] | None, path: str) -> Iterator[str]:
    if old is None and new is None:
        return
    if old is None or new is None:
        yield f"{path}: constraint changed (enum)"
        return
    for value in old:
        if value not in new:
            yield f"{path}: value removed ({json.dumps(value)})"
    for value in new:
        if value not in old and "unknown" not in old:
            yield f"{path}: value added where earlier readers have no `unknown` ({json.dumps(value)})"


def _resolved(node: Schema, root: Schema) -> Schema:
    """Follows local references; keywords beside a reference count too (draft 2020-12)."""
    while "$ref" in node:
        target: Any = root
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = {**target, **{name: value for name, value in node.items() if name != "$ref"}}
    return node
