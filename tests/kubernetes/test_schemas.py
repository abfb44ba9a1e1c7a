"""Every object is valid for the oldest Kubernetes that the chart admits, and for the newest we know."""

from __future__ import annotations

import copy

import pytest
import yaml
from testbed.helm import Helm
from tests.kubernetes.chart import CHART, SETS, Refused, Rendered
from tests.kubernetes.validate import FOREIGN, NEWEST, OLDEST, faults


@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
def test_every_object_is_valid(rendered: Rendered, kubernetes: str) -> None:
    assert [] == [fault for each in rendered.objects for fault in faults(each, kubernetes)]


@pytest.mark.parametrize("values", sorted(SETS))
def test_helm_has_nothing_to_say(the_helm: Helm, values: str) -> None:
    files = [part for path in SETS[values] for part in ("--values", path)]

    done = the_helm.run("lint", "--strict", "--quiet", CHART, *files)

    assert (0, "") == (done.returncode, done.stdout.strip())


def test_the_oldest_is_the_one_that_the_chart_names(the_helm: Helm) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f">={OLDEST}-0" == chart["kubeVersion"]

    with pytest.raises(Refused, match="incompatible with Kubernetes"):
        Rendered.of(the_helm, values=SETS["minimal"], kubernetes="1.29.0")


def test_a_field_that_the_api_does_not_have_is_found(minimal: Rendered) -> None:
    deployment = copy.deepcopy(minimal.kind("Deployment")[0])
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}

    [fault] = faults(deployment, NEWEST)

    assert "livenessProb" in fault


def test_foreign_kinds_have_schemas_of_ours(large: Rendered) -> None:
    foreign = [each for each in large.objects if each["apiVersion"].partition("/")[0] in FOREIGN]

    assert {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PrometheusRule"} == {
        each["kind"] for each in foreign
    }


def test_names_are_unique_and_short_enough(rendered: Rendered) -> None:
    named = [(each["kind"], each["metadata"]["name"]) for each in rendered.objects]

    assert len(named) == len(set(named))
    assert all(len(name) <= 63 for _, name in named)
