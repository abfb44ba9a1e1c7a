"""What a value set renders to, read as objects."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from testbed.helm import KUBERNETES, Helm

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "isocenter"
EXAMPLES = CHART / "examples"
VALUES = Path(__file__).parent / "values"

SETS: dict[str, tuple[Path, ...]] = {
    **{path.stem: (path,) for path in sorted(EXAMPLES.glob("*.yaml"))},
    "gpu": (EXAMPLES / "minimal.yaml", VALUES / "gpu.yaml"),
    "large-without-keda": (EXAMPLES / "large.yaml", VALUES / "without-keda.yaml"),
}
"""Every example, and what only tests render."""

Object = dict[str, Any]
_SIZES = {
    "m": 1e-3,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
}


class Refused(Exception):
    """Helm rendered nothing; the text is what it said."""


@dataclass(frozen=True)
class Pod:
    """A pod template and the object that it stands in."""

    owner: Object
    spec: Object
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def served(self) -> bool:
        """Not a Job."""
        return bool(self.owner["kind"] == "Deployment")


@dataclass(frozen=True)
class Rendered:
    """All objects of a release, hooks included."""

    objects: tuple[Object, ...]

    @classmethod
    def of(cls, helm: Helm, *arguments: str, values: tuple[Path, ...], kubernetes: str = KUBERNETES) -> Self:
        """Raises Refused."""
        done = helm.template(CHART, *arguments, values=values, kubernetes=kubernetes)
        if done.returncode:
            raise Refused(done.stderr)
        return cls(tuple(each for each in yaml.safe_load_all(done.stdout) if each))

    def kind(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def named(self, kind: str, suffix: str) -> Object:
        [found] = [each for each in self.kind(kind) if each["metadata"]["name"].endswith(suffix)]
        return found

    @functools.cached_property
    def pods(self) -> list[Pod]:
        found = []
        for each in self.objects:
            if each["kind"] in {"Deployment", "Job", "StatefulSet", "DaemonSet", "CronJob"}:
                template = each["spec"]["template"]
                meta = template["metadata"]
                found.append(Pod(each, template["spec"], meta["labels"], meta.get("annotations", {})))
        return found

    @property
    def served(self) -> list[Pod]:
        """The pods of services, by component."""
        return [pod for pod in self.pods if pod.served]

    def environment(self, pod: Pod, container: Object, hidden: str = "from a reference") -> dict[str, str]:
        """What the process would see, references replaced."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            [config] = [
                each
                for each in self.kind("ConfigMap")
                if each["metadata"]["name"] == source["configMapRef"]["name"]
            ]
            found |= config["data"]
        for each in container.get("env", []):
            found[each["name"]] = each.get("value", hidden)
        return found


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A LabelSelector; of expressions only NotIn, the one that the chart uses."""
    for expression in selector.get("matchExpressions", []):
        assert "NotIn" == expression["operator"]
        if labels.get(expression["key"]) in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def quantity(text: str | float) -> float:
    """A Kubernetes quantity in units of one."""
    if isinstance(text, int | float):
        return float(text)
    for suffix, factor in _SIZES.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a document with its path."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from leaves(each, f"{path}[{index}]")
    else:
        yield path, value
