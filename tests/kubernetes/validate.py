"""Validation of objects against the schemas of Kubernetes, and against ours for other people's kinds.

The schemas of Kubernetes come from the wheel of `kubernetes-validate`, in their strict form: a field that the
API does not have is a fault. Those of KEDA and the Prometheus operator cannot be had offline; `schemas/` has
small ones of our own, written from their documentation: they catch a misspelt or missing field, no more.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

OURS = Path(__file__).parent / "schemas"
FOREIGN = frozenset({"keda.sh", "monitoring.coreos.com"})
OLDEST, NEWEST = "1.30.0", "1.37.0"
"""The first that Chart.yaml admits, and the newest in the wheel."""


@functools.cache
def validator(api_version: str, kind: str, kubernetes: str) -> Draft202012Validator:
    """Raises FileNotFoundError: this release of Kubernetes has no such kind."""
    group, _, version = api_version.rpartition("/")
    if group in FOREIGN:
        return Draft202012Validator(_read(OURS / f"{kind.lower()}.json"))
    stem = f"{group.partition('.')[0]}-{version}" if group else version
    folder = Path(
        str(files("kubernetes_validate") / "kubernetes-json-schema" / f"v{kubernetes}-local-strict")
    )
    return Draft202012Validator(
        _read(folder / f"{kind.lower()}-{stem}.json"), registry=_definitions(folder / "_definitions.json")
    )


def faults(each: dict[str, Any], kubernetes: str) -> list[str]:
    """What is wrong with an object, one line each."""
    name = f"{each['kind']}/{each['metadata']['name']}"
    found = validator(each["apiVersion"], each["kind"], kubernetes).iter_errors(each)
    return [f"{name} {error.json_path}: {error.message[:200]}" for error in found]


@functools.cache
def _definitions(path: Path) -> Registry[Any]:
    definitions: Resource[Any] = Resource.from_contents(_read(path))
    return definitions @ Registry()


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
