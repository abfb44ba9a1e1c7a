"""Nothing in, nothing out, except what is named."""

from __future__ import annotations

from typing import Any

import yaml
from testbed.helm import Helm
from tests.kubernetes.chart import CHART, SETS, Pod, Rendered, selects


def _policies(rendered: Rendered, pod: Pod) -> list[dict[str, Any]]:
    return [
        each["spec"]
        for each in rendered.kind("NetworkPolicy")
        if selects(each["spec"]["podSelector"], pod.labels)
    ]


def _rules(rendered: Rendered, pod: Pod, direction: str) -> list[dict[str, Any]]:
    return [rule for policy in _policies(rendered, pod) for rule in policy.get(direction, [])]


def test_every_pod_is_closed_both_ways_by_a_policy(rendered: Rendered) -> None:
    for pod in rendered.pods:
        assert {"Ingress", "Egress"} == {
            way for policy in _policies(rendered, pod) for way in policy["policyTypes"]
        }


def test_one_policy_denies_all_that_no_other_allows(rendered: Rendered) -> None:
    """It selects pods that a later service brings, and pods of a service whose own policy was forgotten."""
    deny = rendered.named("NetworkPolicy", "-default-deny")["spec"]

    assert all(selects(deny["podSelector"], pod.labels) for pod in rendered.pods)
    assert {"podSelector", "policyTypes"} == deny.keys()


def test_the_setup_job_comes_before_that_policy_and_has_its_own(rendered: Rendered) -> None:
    """Hooks run first: whatever isolates the Job must be a hook before it."""
    policy = rendered.named("NetworkPolicy", "-setup")
    job = rendered.named("Job", "-setup")
    weights = [int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in (policy, job)]

    assert weights[0] < weights[1]
    assert {"Ingress", "Egress"} == set(policy["spec"]["policyTypes"])
    assert "ingress" not in policy["spec"]


def test_no_rule_is_open_to_everybody(rendered: Rendered) -> None:
    """A rule without peers, an empty peer, and a rule without ports each mean: all."""
    for pod in rendered.pods:
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in _rules(rendered, pod, direction):
                assert rule[side]
                assert rule["ports"]
                for peer in rule[side]:
                    assert peer
                    assert {} not in peer.values()
                if direction == "ingress":
                    assert "0.0.0.0/0" not in [peer.get("ipBlock", {}).get("cidr") for peer in rule[side]]


def test_only_ports_that_a_pod_has_can_be_reached(rendered: Rendered) -> None:
    for pod in rendered.served:
        ports = {port["containerPort"] for port in pod.spec["containers"][0]["ports"]}
        reached = {port["port"] for rule in _rules(rendered, pod, "ingress") for port in rule["ports"]}

        assert reached <= ports


def test_a_pod_calls_dns_and_what_it_is_said_to_call(minimal: Rendered) -> None:
    dns, kafka, mongo, s3 = {(53, "TCP"), (53, "UDP")}, {(9093, "TCP")}, {(27017, "TCP")}, {(8443, "TCP")}
    called = {
        pod.component: {
            (port["port"], port["protocol"])
            for rule in _rules(minimal, pod, "egress")
            for port in rule["ports"]
        }
        for pod in minimal.pods
    }

    assert {
        "ingest": dns | kafka | mongo | s3,
        "indexer": dns | kafka | mongo | s3,
        "gateway": dns | mongo | s3,
        "setup": dns | kafka | s3,
    } == called


def test_every_service_can_reach_the_study_keys() -> None:
    services = yaml.safe_load((CHART / "values.yaml").read_text())["services"]

    assert services
    assert [] == [name for name, service in services.items() if "mongo" not in service["connects"]]


def test_only_ingest_calls_peers_and_only_those_that_are_named(the_helm: Helm, minimal: Rendered) -> None:
    """Results of storage commitment go out on associations that ingest opens."""
    clinic = 'networkPolicy.egress.peers.to=[{"ipBlock":{"cidr":"10.20.0.0/16"}}]'
    named = Rendered.of(the_helm, "--set-json", clinic, values=SETS["minimal"])
    nobody: set[str] = set()
    for rendered, expected in ((minimal, nobody), (named, {"ingest"})):
        calling = {
            pod.component
            for pod in rendered.pods
            for rule in _rules(rendered, pod, "egress")
            if {104, 2762, 11112} <= {port["port"] for port in rule["ports"]}
        }
        assert expected == calling


def test_an_empty_list_lets_nobody_in(the_helm: Helm) -> None:
    rendered = Rendered.of(the_helm, values=SETS["small"])
    [gateway] = [pod for pod in rendered.served if pod.component == "gateway"]

    assert [] == _rules(rendered, gateway, "ingress")


def test_services_lead_to_ports_that_pods_have(rendered: Rendered) -> None:
    for service in rendered.kind("Service"):
        pods = [
            pod for pod in rendered.pods if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)
        ]
        assert 1 == len(pods)
        names = {port["name"] for port in pods[0].spec["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_metrics_can_be_read_of_pods_that_are_not_ready(rendered: Rendered) -> None:
    metrics = [each for each in rendered.kind("Service") if each["metadata"]["name"].endswith("-metrics")]

    assert len(rendered.served) == len(metrics)
    assert all(each["spec"]["clusterIP"] == "None" for each in metrics)
    assert all(each["spec"]["publishNotReadyAddresses"] for each in metrics)


def test_the_senders_address_reaches_the_pod(rendered: Rendered) -> None:
    """An ipBlock would otherwise be compared with the address of a node."""
    for service in rendered.kind("Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            assert "Local" == service["spec"]["externalTrafficPolicy"]


def test_without_policies_none_is_made(the_helm: Helm) -> None:
    rendered = Rendered.of(the_helm, "--set", "networkPolicy.enabled=false", values=SETS["minimal"])

    assert [] == rendered.kind("NetworkPolicy")
