"""Budgets, autoscalers and the hook that makes the topics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from testbed.helm import Helm
from tests.kubernetes.chart import CHART, SETS, Rendered, selects

from isocenter.cli.main import COMMANDS
from isocenter.common.events.topics import TOPICS

ON_ITS_NODES = {"gpu-stager"}
"""One for each GPU node: lag brings no further node."""


def _replicas(rendered: Rendered, name: str) -> int:
    """The fewest that a Deployment runs with."""
    for each in rendered.kind("HorizontalPodAutoscaler"):
        if each["metadata"]["name"] == name:
            return int(each["spec"]["minReplicas"])
    for each in rendered.kind("ScaledObject"):
        if each["metadata"]["name"] == name:
            return int(each["spec"]["minReplicaCount"])
    [deployment] = [each for each in rendered.kind("Deployment") if each["metadata"]["name"] == name]
    return int(deployment["spec"]["replicas"])


def _by_lag(scaled: dict[str, Any]) -> list[dict[str, Any]]:
    """The triggers of a ScaledObject that read a topic's lag."""
    return [each for each in scaled["spec"]["triggers"] if each["type"] == "kafka"]


def test_every_deployment_has_a_budget_that_lets_nodes_drain(rendered: Rendered) -> None:
    budgets = rendered.kind("PodDisruptionBudget")
    for pod in rendered.served:
        [budget] = [each for each in budgets if selects(each["spec"]["selector"], pod.labels)]
        replicas = _replicas(rendered, pod.owner["metadata"]["name"])
        allowed = budget["spec"]["maxUnavailable"]
        if isinstance(allowed, str):
            allowed = math.ceil(replicas * int(allowed.removesuffix("%")) / 100)

        assert 1 <= allowed
        assert replicas == 1 or allowed < replicas, "and keeps some"
        assert "AlwaysAllow" == budget["spec"]["unhealthyPodEvictionPolicy"]


def test_a_budget_in_per_cent(the_helm: Helm) -> None:
    rendered = Rendered.of(the_helm, "--set", "defaults.maxUnavailable=25%", values=SETS["large"])

    assert {"25%"} == {each["spec"]["maxUnavailable"] for each in rendered.kind("PodDisruptionBudget")}


def test_a_deployment_is_scaled_by_one_thing(rendered: Rendered) -> None:
    """Two autoscalers fight; one beside `replicas` starts over at each upgrade."""
    scaled = [
        each["spec"]["scaleTargetRef"]["name"]
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for each in rendered.kind(kind)
    ]

    assert len(scaled) == len(set(scaled))
    for each in rendered.kind("Deployment"):
        assert ("replicas" in each["spec"]) == (each["metadata"]["name"] not in scaled)


def test_lag_is_that_of_groups_that_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    triggers = [
        (name, each)
        for name, service in values["services"].items()
        for each in service["autoscaling"].get("lag", [])
    ]

    assert triggers
    for name, each in triggers:
        assert each["group"] in TOPICS[each["topic"]].consumers
        assert name == each["group"].partition(".")[0]


def test_every_consumer_group_scales_its_service_by_lag() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    watched = {
        (each["topic"], each["group"])
        for service in values["services"].values()
        for each in service["autoscaling"].get("lag", [])
    }

    assert {
        (topic.name, group)
        for topic in TOPICS.values()
        for group in topic.consumers
        if group.partition(".")[0] not in ON_ITS_NODES
    } == watched


def test_no_more_consumers_than_partitions(rendered: Rendered) -> None:
    for scaled in rendered.kind("ScaledObject"):
        partitions = max(TOPICS[each["metadata"]["topic"]].partitions for each in _by_lag(scaled))

        assert scaled["spec"]["maxReplicaCount"] <= partitions


def test_with_keda_consumers_scale_by_lag_and_the_rest_by_cpu(large: Rendered) -> None:
    assert {"demo-isocenter-indexer", "demo-isocenter-ingest"} == {
        each["metadata"]["name"] for each in large.kind("ScaledObject")
    }
    assert {"demo-isocenter-gateway"} == {
        each["metadata"]["name"] for each in large.kind("HorizontalPodAutoscaler")
    }


def test_a_consumer_that_senders_load_scales_by_both(large: Rendered) -> None:
    """Its lag is nothing while modalities keep it busy."""
    kinds = {
        scaled["metadata"]["name"]: [each["type"] for each in scaled["spec"]["triggers"]]
        for scaled in large.kind("ScaledObject")
    }

    assert {"demo-isocenter-indexer": ["kafka"], "demo-isocenter-ingest": ["kafka", "cpu"]} == kinds


def test_keda_signs_in_as_the_services_do(large: Rendered) -> None:
    triggers = [trigger for scaled in large.kind("ScaledObject") for trigger in _by_lag(scaled)]
    [authentication] = large.kind("TriggerAuthentication")

    assert triggers
    for trigger in triggers:
        assert ("enable", "scram_sha512") == (trigger["metadata"]["tls"], trigger["metadata"]["sasl"])
        assert authentication["metadata"]["name"] == trigger["authenticationRef"]["name"]
    assert {"username": "isocenter-kafka", "password": "isocenter-kafka"} == {
        each["parameter"]: each["name"] for each in authentication["spec"]["secretTargetRef"]
    }
    assert ["cluster-ca"] == [each["name"] for each in authentication["spec"]["configMapTargetRef"]]


@pytest.mark.parametrize("values", ["large-without-keda", "minimal"])
def test_without_keda_consumers_scale_by_cpu(the_helm: Helm, values: str) -> None:
    rendered = Rendered.of(the_helm, values=SETS[values])

    assert [] == rendered.kind("ScaledObject") + rendered.kind("TriggerAuthentication")
    assert "demo-isocenter-indexer" in {
        each["metadata"]["name"] for each in rendered.kind("HorizontalPodAutoscaler")
    }


def test_percent_of_cpu_is_of_a_request(rendered: Rendered) -> None:
    """Without a request, an autoscaler by CPU does nothing at all."""
    for scaler in rendered.kind("HorizontalPodAutoscaler"):
        [pod] = [
            pod
            for pod in rendered.served
            if pod.owner["metadata"]["name"] == scaler["spec"]["scaleTargetRef"]["name"]
        ]
        assert all("cpu" in each["resources"]["requests"] for each in pod.spec["containers"])


def test_topics_come_before_the_pods(rendered: Rendered) -> None:
    job = rendered.named("Job", "-setup")
    steps = [
        *job["spec"]["template"]["spec"].get("initContainers", []),
        *job["spec"]["template"]["spec"]["containers"],
    ]

    assert "pre-install,pre-upgrade" == job["metadata"]["annotations"]["helm.sh/hook"]
    assert ["isocenter", "topics", "apply"] in [step["command"] for step in steps]


def test_the_steps_of_the_setup_are_commands(minimal: Rendered) -> None:
    spec = minimal.named("Job", "-setup")["spec"]["template"]["spec"]
    commands = [step["command"] for step in (*spec["initContainers"], *spec["containers"])]

    assert {"isocenter"} == {command[0] for command in commands}
    assert {command[1] for command in commands} <= COMMANDS.keys()


def test_what_the_hook_needs_is_a_hook_before_it(rendered: Rendered) -> None:
    """Its account and configuration would otherwise come after it."""
    job = rendered.named("Job", "-setup")
    for kind in ("ServiceAccount", "ConfigMap"):
        annotations = rendered.named(kind, "-setup")["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == job["metadata"]["annotations"]["helm.sh/hook"]
        assert int(annotations["helm.sh/hook-weight"]) < int(
            job["metadata"]["annotations"]["helm.sh/hook-weight"]
        )
