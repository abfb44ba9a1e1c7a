"""What every pod keeps: probes, the restricted profile, resources, fixed images, no secret inline."""

from __future__ import annotations

import re

import pytest
from testbed.helm import Helm
from tests.kubernetes.chart import SETS, Rendered, leaves, quantity

from isocenter.common.health import CHECK_SECONDS, PATHS


def test_probes_ask_the_health_port(rendered: Rendered) -> None:
    for pod in rendered.served:
        [container] = pod.spec["containers"]
        health = {port["name"]: port["containerPort"] for port in container["ports"]}["health"]
        prefix = f"ISOCENTER_{pod.component.upper().replace('-', '_')}"
        environment = rendered.environment(pod, container)

        assert str(health) == environment[f"{prefix}_HEALTH_PORT"]
        assert "127.0.0.1" != environment[f"{prefix}_HEALTH_HOST"], "the kubelet asks from outside"
        assert {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"} == {
            probe: container[probe]["httpGet"]["path"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        }
        assert {"/livez", "/readyz"} <= PATHS
        assert all(container[probe]["httpGet"]["port"] == "health" for probe in container if "Probe" in probe)


def test_readiness_waits_longer_than_the_checks_may_take(rendered: Rendered) -> None:
    """Else a slow engine looks like a dead pod, and the body that names it is never read."""
    for pod in rendered.served:
        assert pod.spec["containers"][0]["readinessProbe"]["timeoutSeconds"] > CHECK_SECONDS


def test_a_pod_is_not_called_dead_before_it_had_a_minute(rendered: Rendered) -> None:
    for pod in rendered.served:
        for name in ("startupProbe", "livenessProbe"):
            probe = pod.spec["containers"][0][name]
            assert probe["periodSeconds"] * probe["failureThreshold"] >= 60


def test_the_restricted_profile_holds(rendered: Rendered) -> None:
    for pod in rendered.pods:
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert {"type": "RuntimeDefault"} == context["seccompProfile"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
        assert not [volume for volume in pod.spec["volumes"] if "hostPath" in volume]
        for container in pod.containers:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert {"drop": ["ALL"]} == own["capabilities"]
            assert not own.get("privileged")
            assert not [port for port in container.get("ports", []) if port["containerPort"] < 1024]
            assert not [port for port in container.get("ports", []) if "hostPort" in port]


def test_no_pod_has_a_token_of_the_api_server(rendered: Rendered) -> None:
    accounts = {each["metadata"]["name"]: each for each in rendered.kind("ServiceAccount")}
    for pod in rendered.pods:
        assert pod.spec["automountServiceAccountToken"] is False
        assert accounts[pod.spec["serviceAccountName"]]["automountServiceAccountToken"] is False


def test_no_service_of_ours_becomes_a_setting(rendered: Rendered) -> None:
    """Service links would add ISOCENTER_..._PORT=tcp://... for a release that is called isocenter."""
    assert all(pod.spec["enableServiceLinks"] is False for pod in rendered.pods)


def test_resources_are_asked_for_and_bounded(rendered: Rendered) -> None:
    for pod in rendered.pods:
        for container in pod.containers:
            resources = container["resources"]
            assert {"cpu", "memory", "ephemeral-storage"} <= resources["requests"].keys()
            assert {"memory", "ephemeral-storage"} <= resources["limits"].keys()
            for name, asked in resources["requests"].items():
                limit = resources["limits"].get(name)
                assert limit is None or quantity(asked) <= quantity(limit)


def test_scratch_space_is_bounded_and_fits_into_the_limit(rendered: Rendered) -> None:
    for pod in rendered.pods:
        scratch = {
            volume["name"]: volume["emptyDir"] for volume in pod.spec["volumes"] if "emptyDir" in volume
        }
        assert {"tmp", "data"} == scratch.keys()
        needed = sum(quantity(each["sizeLimit"]) for each in scratch.values())
        for container in pod.containers:
            assert needed <= quantity(container["resources"]["limits"]["ephemeral-storage"])
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert ("/tmp", "/data") == (mounts["tmp"], mounts["data"])  # noqa: S108 - of a pod


def test_replicas_spread_over_zones_and_hosts(rendered: Rendered, request: pytest.FixtureRequest) -> None:
    small = request.node.callspec.params["rendered"] == "small"
    for pod in rendered.served:
        keys = {each["topologyKey"] for each in pod.spec["topologySpreadConstraints"] or []}
        assert keys == (set() if small else {"topology.kubernetes.io/zone", "kubernetes.io/hostname"})


def test_no_image_is_a_moving_one(rendered: Rendered) -> None:
    for pod in rendered.pods:
        for container in pod.containers:
            assert re.fullmatch(
                r"[^\s:]+(:[0-9]+/[^\s:]+)?(:[\w.-]+|@sha256:[0-9a-f]{64})", container["image"]
            )
            assert not container["image"].endswith(":latest")


def test_a_digest_wins_over_a_tag(the_helm: Helm) -> None:
    digest = "sha256:" + "ab" * 32
    rendered = Rendered.of(
        the_helm,
        "--set",
        f"services.ingest.image.digest={digest},services.ingest.image.tag=v9,services.indexer.image.tag=v9",
        values=SETS["minimal"],
    )
    images = {pod.component: pod.spec["containers"][0]["image"] for pod in rendered.served}

    assert f"registry.example/imaging/isocenter-ingest@{digest}" == images["ingest"]
    assert "registry.example/imaging/isocenter-indexer:v9" == images["indexer"]


def test_secrets_are_named_and_none_is_made(rendered: Rendered) -> None:
    assert [] == rendered.kind("Secret")
    for pod in rendered.pods:
        [keys] = [volume["secret"] for volume in pod.spec["volumes"] if volume["name"] == "keys"]
        assert "isocenter-site-key" == keys["secretName"]
        assert not keys["defaultMode"] & 0o027, "readable by the pod's group, writable by none"
        for container in pod.containers:
            secret = {each["name"] for each in container["env"] if "valueFrom" in each}
            # Who cannot call the database does not hold its password.
            assert (pod.component in {"ingest", "indexer", "gateway"}) == ("ISOCENTER_MONGO_URI" in secret)
            plain = {each["name"] for each in container["env"] if "value" in each}
            assert not [name for name in plain if re.search("PASSWORD|SECRET|KEY|URI|TOKEN", name)]


def test_nothing_that_looks_like_a_secret_is_in_any_object(rendered: Rendered) -> None:
    for each in rendered.objects:
        for path, value in leaves(each):
            assert not re.search(r"://[^/\s]*:[^/\s]*@", str(value)), path
            if re.search(r"(?i)(password|secret_?key|access_?key|uri)$", path):
                assert str(value).startswith("/") or not value, f"{path} holds a value"


def test_a_changed_setting_restarts_its_service_and_no_other(the_helm: Helm, minimal: Rendered) -> None:
    changed = Rendered.of(
        the_helm, "--set", "services.ingest.settings.max_associations=7", values=SETS["minimal"]
    )
    before, after = (
        {pod.component: pod.annotations["checksum/config"] for pod in each.served}
        for each in (minimal, changed)
    )

    assert {"ingest"} == {name for name in before if before[name] != after[name]}


def test_a_changed_setting_of_the_site_restarts_all(the_helm: Helm, minimal: Rendered) -> None:
    changed = Rendered.of(the_helm, "--set", "platform.settings.log_level=debug", values=SETS["minimal"])
    before, after = (
        {pod.component: pod.annotations["checksum/config"] for pod in each.served}
        for each in (minimal, changed)
    )

    assert set(before) == {name for name in before if before[name] != after[name]}


def test_a_later_service_is_values_only(the_helm: Helm) -> None:
    rendered = Rendered.of(the_helm, values=SETS["gpu"])

    [pod] = [pod for pod in rendered.served if pod.component == "gpu-stager"]

    assert 1 == pod.spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert "nvidia" == pod.spec["runtimeClassName"]
    assert {"nvidia.com/gpu.present": "true"} == pod.spec["nodeSelector"]
    assert {"type": "Recreate"} == pod.owner["spec"]["strategy"]
    assert "/nvme" in {mount["mountPath"] for mount in pod.spec["containers"][0]["volumeMounts"]}
    assert "30" == rendered.environment(pod, pod.spec["containers"][0])["ISOCENTER_GPU_STAGER_LEASE_SECONDS"]
