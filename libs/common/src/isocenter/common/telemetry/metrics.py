"""Metrics: one set of OpenTelemetry instruments per service, read by `/metrics` and pushed over OTLP.

OpenTelemetry's SDK and not prometheus_client holds the numbers, because both outputs are needed and the SDK
serves any number of readers from one set of instruments. prometheus_client only writes the text format, whose
escaping and grouping rules it knows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.metrics import Histogram as OtelHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.metrics.export import Metric as MetricData
from opentelemetry.sdk.metrics.export import Sum as SumData
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from isocenter.common.telemetry.names import LABELS, Counter, Gauge, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. From a local fsync (2 ms) to a retrieval of a large study (minutes), as the semantic conventions
# advise for durations, widened at the top.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

Reading = Iterable[tuple[float, Mapping[str, str]]]


@dataclass(slots=True)
class _Sum:
    """A counter with one set of labels."""

    attributes: dict[str, str]
    total: float = 0


class Metrics:
    """The instruments of one service. A label that the metric does not have raises TypeError."""

    def __init__(self, service: str, resource: Resource, readers: Iterable[MetricReader] = ()) -> None:
        self.service = service
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider(
            metric_readers=[self._reader, *readers], resource=resource, shutdown_on_exit=False
        )
        self._meter = self._provider.get_meter("isocenter")
        self._sums: dict[Counter, dict[tuple[tuple[str, str], ...], _Sum]] = {}
        self._adding = threading.Lock()
        self._histograms: dict[Histogram, OtelHistogram] = {}
        self._recorded: dict[tuple[Histogram, tuple[tuple[str, str], ...]], dict[str, str]] = {}
        self._readings: dict[Gauge, list[Callable[[], Reading]]] = {}
        self._levels: dict[Gauge, dict[tuple[tuple[str, str], ...], float]] = {}

    @property
    def meter_provider(self) -> MeterProvider:
        return self._provider

    def add(self, metric: Counter, amount: float = 1, **labels: str) -> None:
        """Adds to a number of our own, which is read when somebody collects: some are counted for each
        instance, and the instruments of the SDK cost more than what they count.
        """
        sums = self._sums.get(metric)
        key = tuple(labels.items())
        found = sums.get(key) if sums is not None else None
        if found is None:
            found = self._new_sum(metric, labels)
        with self._adding:
            found.total += amount

    def _new_sum(self, metric: Counter, labels: Mapping[str, str]) -> _Sum:
        made = _Sum(_attributes(metric, labels))
        with self._adding:
            sums = self._sums.get(metric)
            if sums is not None:
                for other in sums.values():
                    if other.attributes == made.attributes:  # named in another order
                        made = other
                return sums.setdefault(tuple(labels.items()), made)
            sums = self._sums[metric] = {tuple(labels.items()): made}

        def observations(_: CallbackOptions) -> Iterable[Observation]:
            for one in {id(one): one for one in list(sums.values())}.values():
                yield Observation(one.total, one.attributes)

        self._meter.create_observable_counter(metric.value, [observations], metric.unit, metric.meaning)
        return made

    def record(self, metric: Histogram, seconds: float, **labels: str) -> None:
        instrument = self._histograms.get(metric)
        if instrument is None:
            instrument = self._meter.create_histogram(
                metric.value, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=BUCKETS
            )
            self._histograms[metric] = instrument
        key = metric, tuple(labels.items())
        attributes = self._recorded.get(key)
        if attributes is None:
            attributes = self._recorded[key] = _attributes(metric, labels)
        instrument.record(seconds, attributes)

    def set(self, metric: Gauge, value: float, **labels: str) -> None:
        """The value until the next `set` with these labels."""
        _attributes(metric, labels)
        if metric not in self._levels:
            levels: dict[tuple[tuple[str, str], ...], float] = {}
            self._levels[metric] = levels
            self.observe(metric, lambda: [(level, dict(key)) for key, level in list(levels.items())])
        self._levels[metric][tuple(sorted(labels.items()))] = value

    def observe(self, metric: Gauge, reading: Callable[[], Reading]) -> None:
        """Reads the gauge by a callback at each collection. It runs in any thread and must not block."""
        readings = self._readings.get(metric)
        if readings is not None:
            readings.append(reading)
            return
        readings = self._readings[metric] = [reading]

        def observations(_: CallbackOptions) -> Iterable[Observation]:
            for each in readings:
                for value, labels in each():
                    yield Observation(value, _attributes(metric, labels))

        self._meter.create_observable_gauge(metric.value, [observations], metric.unit, metric.meaning)

    def collect(self) -> list[MetricData]:
        """The numbers of now, cumulative since the start."""
        data = self._reader.get_metrics_data()
        return [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def value(self, metric: Counter | Gauge | Histogram, **labels: str) -> float:
        """Sum over the label sets that contain `labels` (of a histogram: its count); 0 without any."""
        wanted = _attributes(metric, labels).items()
        total = 0.0
        for data in self.collect():
            for point in data.data.data_points if data.name == metric.value else ():
                if wanted <= dict(point.attributes or {}).items():
                    total += point.count if isinstance(point, HistogramDataPoint) else _number(point)
        return total

    def shutdown(self) -> None:
        self._provider.shutdown()


def prometheus_text(sources: Iterable[Metrics]) -> bytes:
    """One page for all services of a process, told apart by the label `service`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(sources))
    return generate_latest(registry)


class _Page(Collector):
    """Groups the samples of all services by metric: the text format allows each name once."""

    def __init__(self, sources: Iterable[Metrics]) -> None:
        self._sources = tuple(sources)

    def collect(self) -> Iterable[Family]:
        families: dict[str, Family] = {}
        for source in self._sources:
            for metric in source.collect():
                family = families.setdefault(metric.name, _family(metric))
                for point in metric.data.data_points:
                    _add(family, point, source.service)
        return families.values()


def exposed_name(metric: Counter | Gauge | Histogram) -> str:
    """The metric on the `/metrics` page. The series of a histogram end in `_bucket`, `_count` and `_sum`."""
    return _name(metric.value, metric.unit) + ("_total" if isinstance(metric, Counter) else "")


def exposed_labels(metric: Counter | Gauge | Histogram) -> frozenset[str]:
    """Those it may have there; a scrape adds its own."""
    return frozenset({"service", *(_label(LABELS[name]) for name in metric.labels)})


def _name(name: str, unit: str | None) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name) + _UNIT_SUFFIX.get(unit or "", "")


def _label(name: str) -> str:
    return name.replace(".", "_")


def _family(metric: MetricData) -> Family:
    name = _name(metric.name, metric.unit)
    help_text = metric.description or ""
    if isinstance(metric.data, HistogramData):
        return HistogramMetricFamily(name, help_text)
    if isinstance(metric.data, SumData) and metric.data.is_monotonic:
        return CounterMetricFamily(name, help_text)
    return GaugeMetricFamily(name, help_text)


_UNIT_SUFFIX = {"s": "_seconds", "By": "_bytes"}


def _add(family: Family, point: object, service: str) -> None:
    attributes = getattr(point, "attributes", None) or {}
    labels = {"service": service} | {_label(name): str(value) for name, value in attributes.items()}
    if isinstance(point, HistogramDataPoint):
        below = 0
        for bound, count in zip((*point.explicit_bounds, float("inf")), point.bucket_counts, strict=True):
            below += count
            edge = "+Inf" if bound == float("inf") else repr(float(bound))
            family.add_sample(f"{family.name}_bucket", labels | {"le": edge}, below)
        family.add_sample(f"{family.name}_count", labels, point.count)
        family.add_sample(f"{family.name}_sum", labels, point.sum)
    elif isinstance(point, NumberDataPoint):
        suffix = "_total" if isinstance(family, CounterMetricFamily) else ""
        family.add_sample(f"{family.name}{suffix}", labels, point.value)


def _number(point: object) -> float:
    return float(point.value) if isinstance(point, NumberDataPoint) else 0.0


def _attributes(metric: Counter | Gauge | Histogram, labels: Mapping[str, str]) -> dict[str, str]:
    if not labels.keys() <= set(metric.labels):
        raise TypeError(f"{metric.value} has the labels {metric.labels}, got {sorted(labels)}")
    return {LABELS[name]: value for name, value in labels.items()}
