"""The `/metrics` pages of several processes as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from isocenter.common.telemetry import Gauge
from isocenter.common.telemetry.metrics import exposed_name
from isocenter.common.telemetry.names import SHARED

if TYPE_CHECKING:
    from collections.abc import Iterable

    Key = tuple[str, tuple[tuple[str, str], ...]]

_LEAST: Final = frozenset(exposed_name(each) for each in (Gauge.CHECK, Gauge.READY))
"""One process that is not ready is what an operator should see."""
_MOST: Final = frozenset(exposed_name(each) for each in SHARED | {Gauge.INGEST_REFUSING})


class Page:
    """Metrics by family. Counts add up, and so do gauges of which each process has its own part."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str]] = {}
        self._samples: dict[str, dict[Key, float]] = {}

    def add(self, text: str, *, gone: bool = False) -> None:
        """One process' page; of one that is gone only what it has counted."""
        for family in text_string_to_metric_families(text):
            if gone and family.type not in {"counter", "histogram"}:
                continue
            self._families.setdefault(family.name, (family.documentation, family.type))
            samples = self._samples.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                samples[key] = _together(family.name, samples.get(key), sample.value)

    def text(self) -> str:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(self._metrics()))
        return generate_latest(registry).decode()

    def _metrics(self) -> Iterable[Metric]:
        for name, (meaning, kind) in self._families.items():
            metric = Metric(name, meaning, kind)
            metric.samples = [
                Sample(series, dict(labels), value) for (series, labels), value in self._samples[name].items()
            ]
            yield metric


class _Families(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _together(name: str, one: float | None, other: float) -> float:
    if one is None:
        return other
    if name in _LEAST:
        return min(one, other)
    return max(one, other) if name in _MOST else one + other
