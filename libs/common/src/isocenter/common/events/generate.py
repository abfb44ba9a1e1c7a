"""`python -m isocenter.common.events.generate`: writes the committed JSON Schemas from the models.

A schema is the producer's strict view: no property that is not listed. `schemas/history` keeps each minor as
it was first written; it is never overwritten, so a change without a new minor shows in the tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isocenter.common.events.codec import schema_uri
from isocenter.common.events.models import EVENT_MODELS, ROOT_PREFIX, TYPE_PREFIX, Event

HERE = Path(__file__).parent
SCHEMAS = HERE / "schemas"
HISTORY = SCHEMAS / "history"
EXAMPLES = HERE / "examples"

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def short_name(event_type: str) -> str:
    """The type without the reverse-DNS prefix: names of files and headings."""
    return event_type.removeprefix(TYPE_PREFIX).removeprefix(ROOT_PREFIX)


def schema_path(model: type[Event]) -> Path:
    return SCHEMAS / f"{short_name(model.event_type)}.schema.json"


def history_path(model: type[Event], minor: int) -> Path:
    return HISTORY / f"{short_name(model.event_type)}.{minor}.schema.json"


def example_path(model: type[Event], minor: int) -> Path:
    return EXAMPLES / short_name(model.event_type) / f"{minor}.json"


def schema(model: type[Event]) -> dict[str, Any]:
    """JSON Schema 2020-12 of an event's data."""
    generated = model.model_json_schema(mode="validation")
    return {"$schema": DIALECT, "$id": schema_uri(model), **_closed(generated)}


def text(document: Any) -> str:
    """One canonical rendering, so that a committed file equals a generated one byte for byte."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write(schemas: Path = SCHEMAS, history: Path = HISTORY) -> list[Path]:
    """Writes every schema; returns the files that changed."""
    history.mkdir(parents=True, exist_ok=True)
    changed = []
    for model in EVENT_MODELS.values():
        content = text(schema(model))
        current = schemas / schema_path(model).name
        first = history / history_path(model, model.schema_minor).name
        for path in (current, first):
            if not path.exists() or (path == current and path.read_text() != content):
                path.write_text(content)
                changed.append(path)
    return changed


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {name: _closed(value) for name, value in node.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed["additionalProperties"] = False
    return closed


if __name__ == "__main__":
    for path in write():
        print(path)  # noqa: T201 - a command's output
