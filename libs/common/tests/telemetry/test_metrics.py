"""One set of numbers per service, one Prometheus page per process."""

import re
from threading import Thread

import pytest
from prometheus_client.parser import text_string_to_metric_families

from isocenter.common.telemetry import Counter, Gauge, Histogram, noop
from isocenter.common.telemetry.metrics import exposed_labels, exposed_name, prometheus_text
from isocenter.common.telemetry.names import LABELS

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(page: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairs.items())


def test_counters_add_up_by_label() -> None:
    metrics = noop("ingest").metrics

    for outcome in ("stored", "stored", "rejected"):
        metrics.add(Counter.INGEST_INSTANCES, protocol="dimse", outcome=outcome)

    assert 2 == metrics.value(Counter.INGEST_INSTANCES, outcome="stored")
    assert 3 == metrics.value(Counter.INGEST_INSTANCES)
    assert 0 == metrics.value(Counter.INGEST_BYTES)
    name = "isocenter_ingest_instances_total"
    pairs = labels(service="ingest", isocenter_protocol="dimse", isocenter_outcome="stored")
    assert 2 == parsed(prometheus_text([metrics]))[name, pairs]


def test_histograms_are_cumulative_and_named_by_unit() -> None:
    metrics = noop("gateway").metrics
    for seconds in (0.02, 0.2, 1000):
        metrics.record(Histogram.INGEST_STORE, seconds, protocol="stow")

    samples = parsed(prometheus_text([metrics]))

    name, pairs = (
        "isocenter_ingest_store_duration_seconds",
        labels(service="gateway", isocenter_protocol="stow"),
    )
    assert 3 == samples[f"{name}_count", pairs]
    assert 1000.22 == pytest.approx(samples[f"{name}_sum", pairs])
    assert 1 == samples[f"{name}_bucket", pairs | labels(le="0.025")]
    assert 2 == samples[f"{name}_bucket", pairs | labels(le="0.25")]
    assert 3 == samples[f"{name}_bucket", pairs | labels(le="+Inf")]
    assert 3 == metrics.value(Histogram.INGEST_STORE)


def test_gauges_are_set_or_read_when_asked() -> None:
    metrics = noop("indexer").metrics
    lag = {"a": 3.0}
    metrics.set(Gauge.READY, 1)
    metrics.set(Gauge.READY, 0)
    metrics.observe(Gauge.CONSUMER_LAG, lambda: [(lag["a"], {"topic": "a", "group": "g"})])
    metrics.observe(Gauge.CONSUMER_LAG, lambda: [(9, {"topic": "b", "group": "g"})])
    lag["a"] = 5.0

    assert 0 == metrics.value(Gauge.READY)
    assert 5 == metrics.value(Gauge.CONSUMER_LAG, topic="a")
    assert 9 == metrics.value(Gauge.CONSUMER_LAG, topic="b")


def test_a_gauge_keeps_one_value_per_label_set() -> None:
    metrics = noop("bus").metrics
    metrics.set(Gauge.PARKED, 1, topic="a", group="g")
    metrics.set(Gauge.PARKED, 2, topic="b", group="g")
    metrics.set(Gauge.PARKED, 3, group="g", topic="a")

    assert (3, 2) == (metrics.value(Gauge.PARKED, topic="a"), metrics.value(Gauge.PARKED, topic="b"))


def test_services_of_a_process_share_a_page_and_no_number() -> None:
    ingest, indexer = noop("ingest").metrics, noop("indexer").metrics
    ingest.set(Gauge.READY, 1)
    indexer.set(Gauge.READY, 0)

    page = prometheus_text([ingest, indexer])

    assert 1 == page.count(b"# TYPE isocenter_ready gauge")
    samples = parsed(page)
    assert 1 == samples["isocenter_ready", labels(service="ingest")]
    assert 0 == samples["isocenter_ready", labels(service="indexer")]


def test_a_label_that_a_metric_does_not_have_is_refused() -> None:
    metrics = noop("test").metrics

    with pytest.raises(TypeError):
        metrics.add(Counter.INGEST_BYTES, study_key="abc")
    with pytest.raises(TypeError):
        metrics.set(Gauge.READY, 1, topic="x")


def test_counting_from_many_threads_loses_nothing() -> None:
    metrics = noop("test").metrics

    def count() -> None:
        for _ in range(1_000):
            metrics.add(Counter.INGEST_BYTES, 1, protocol="dimse")

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 4_000 == metrics.value(Counter.INGEST_BYTES)


@pytest.mark.parametrize("metric", [*Counter, *Gauge, *Histogram], ids=str)
def test_every_metric_says_what_it_means_and_what_to_do(metric: Counter | Gauge | Histogram) -> None:
    assert metric.meaning.endswith(".")
    assert metric.next_step.endswith(".")
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", metric.value)
    assert set(metric.labels) <= LABELS.keys()


def test_no_label_can_hold_an_identifier_of_one_study() -> None:
    """Each distinct value is a time series for ever, and a study in a metric is a trail."""
    assert not {"study_key", "instance_key", "series_key", "object_key", "event_id"} & LABELS.keys()


def test_the_page_shows_every_metric_under_the_name_that_queries_use() -> None:
    metrics = noop("ingest").metrics
    for counter in Counter:
        metrics.add(counter, 1, **dict.fromkeys(counter.labels, "x"))
    for histogram in Histogram:
        metrics.record(histogram, 1.0, **dict.fromkeys(histogram.labels, "x"))
    for gauge in Gauge:
        metrics.set(gauge, 1, **dict.fromkeys(gauge.labels, "x"))

    page = prometheus_text([metrics]).decode()

    for metric in (*Counter, *Gauge, *Histogram):
        series = exposed_name(metric) + ("_count" if isinstance(metric, Histogram) else "")
        (line,) = [line for line in page.splitlines() if line.startswith(series + "{")]
        labels = set(re.findall(r'(\w+)="', line))
        assert exposed_labels(metric) == labels
