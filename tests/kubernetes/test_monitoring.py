"""Objects of the Prometheus operator, and the alerts that go with them."""

from __future__ import annotations

import yaml
from testbed.helm import Helm
from tests.kubernetes.chart import CHART, ROOT, SETS, Rendered, selects

ALERTS = ROOT / "deploy" / "observability" / "alerts"
COPIES = CHART / "files" / "alerts"


def test_the_charts_alerts_are_those_of_the_repository() -> None:
    """A chart reads only its own folder. `make chart-files` copies them anew."""
    wanted, copied = (
        {path.name: path.read_text() for path in sorted(folder.glob("*.yaml"))} for folder in (ALERTS, COPIES)
    )

    assert wanted == copied


def test_every_alert_arrives_unchanged(large: Rendered) -> None:
    """`{{ $labels }}` is Prometheus's, not Helm's."""
    [rule] = large.kind("PrometheusRule")
    wanted = [
        group
        for path in sorted(ALERTS.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]

    assert wanted == (rule["spec"]["groups"] or [])


def test_the_service_monitor_finds_every_metrics_service_once(large: Rendered) -> None:
    [monitor] = large.kind("ServiceMonitor")
    found = [
        each["metadata"]["name"]
        for each in large.kind("Service")
        if selects(monitor["spec"]["selector"], each["metadata"]["labels"])
    ]

    assert [f"demo-isocenter-{name}-metrics" for name in ("gateway", "indexer", "ingest")] == sorted(found)
    assert ["imaging"] == monitor["spec"]["namespaceSelector"]["matchNames"]
    assert {"metrics"} == {each["port"] for each in monitor["spec"]["endpoints"]}


def test_the_pod_monitor_finds_the_pods_that_serve(the_helm: Helm) -> None:
    rendered = Rendered.of(the_helm, values=SETS["large-without-keda"])
    [monitor] = rendered.kind("PodMonitor")
    found = {pod.component for pod in rendered.pods if selects(monitor["spec"]["selector"], pod.labels)}

    assert {"gateway", "indexer", "ingest"} == found
    assert {"health"} == {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}


def test_none_of_it_is_made_unless_asked_for(minimal: Rendered) -> None:
    kinds = {each["kind"] for each in minimal.objects}

    assert not {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject"} & kinds
