"""The environment of a pod is one that the code can start with: names, values and periods."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path

import pytest
import yaml
from testbed.helm import Helm
from tests.kubernetes.chart import CHART, ROOT, SETS, Pod, Rendered

from isocenter.common.engines import ENGINE_SETTINGS, Engines
from isocenter.common.objects.s3.admin import Admin
from isocenter.common.settings import PREFIX, PlatformSettings, S3Settings, ServiceSettings, Settings

NOT_YET = frozenset({"gpu-stager"})
"""Services that only a test's values have."""
DELIBERATE = frozenset({("ingest", "dicom_plain")})
"""Values that differ from the code's: a pod is reached from outside itself."""
SHARED: tuple[type[Settings], ...] = (PlatformSettings, *ENGINE_SETTINGS)
SECRETS = {
    "ISOCENTER_MONGO_URI": "mongodb://user:password@mongo/?replicaSet=rs0",
    "ISOCENTER_KAFKA_USERNAME": "isocenter",
    "ISOCENTER_KAFKA_PASSWORD": "password",
    "ISOCENTER_S3_ACCESS_KEY": "access",
    "ISOCENTER_S3_SECRET_KEY": "secret",
}


def settings_of(service: str) -> type[ServiceSettings]:
    """The settings class of a service, found by its prefix."""
    module = importlib.import_module(f"isocenter.{service.replace('-', '_')}.settings")
    [found] = [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, ServiceSettings) and each is not ServiceSettings
    ]
    assert f"{PREFIX}{service.replace('-', '_').upper()}_" == found.model_config["env_prefix"]
    return found


def _environment(rendered: Rendered, pod: Pod) -> dict[str, str]:
    return rendered.environment(pod, pod.containers[-1]) | {
        each["name"]: SECRETS[each["name"]] for each in pod.containers[-1]["env"] if "valueFrom" in each
    }


def _variables(classes: tuple[type[Settings], ...]) -> set[str]:
    return {each.variable(field) for each in classes for field in each.model_fields}


@pytest.fixture
def _as_in_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith((PREFIX, "OTEL_")):
            monkeypatch.delenv(name)


def test_every_variable_is_one_that_the_code_reads(rendered: Rendered) -> None:
    for pod in rendered.pods:
        if pod.component in NOT_YET:
            continue
        classes = (*SHARED, settings_of(pod.component)) if pod.served else SHARED
        given = {name for name in _environment(rendered, pod) if name.startswith(PREFIX)}

        assert set() == given - _variables(classes)


@pytest.mark.usefixtures("_as_in_the_pod")
def test_the_code_starts_with_the_values(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value passes validation, nothing is kept in the pod, and all engines are the site's."""
    for pod in rendered.served:
        if pod.component in NOT_YET:
            continue
        with monkeypatch.context() as patch:
            for name, value in _environment(rendered, pod).items():
                patch.setenv(name, value)
            engines = Engines.load()
            own = settings_of(pod.component).load()

        assert engines.kafka.bootstrap
        assert engines.mongo.uri is not None
        assert engines.s3.endpoint
        assert not engines.needs_data_dir, "a read-only root file system, and nothing that outlives the pod"
        assert "0.0.0.0" == own.health_host  # noqa: S104 - inside a pod, behind a NetworkPolicy


@pytest.mark.usefixtures("_as_in_the_pod")
def test_ports_are_those_that_the_process_binds(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    for pod in rendered.served:
        if pod.component in NOT_YET:
            continue
        container = pod.spec["containers"][0]
        with monkeypatch.context() as patch:
            for name, value in _environment(rendered, pod).items():
                patch.setenv(name, value)
            own = settings_of(pod.component).load().model_dump()
        if not own.get("tls_certificate_file"):
            own.pop("dicom_tls_port", None)
        if own.get("dicom_plain") == "off":
            own.pop("dicom_port")
        bound = {value for name, value in own.items() if name.endswith("_port") and value}

        assert {port["containerPort"] for port in container["ports"]} == bound


def test_every_service_of_this_repository_is_in_the_chart() -> None:
    services = {path.parent.name for path in (ROOT / "services").glob("*/pyproject.toml")}

    in_values = yaml.safe_load((CHART / "values.yaml").read_text())["services"].keys()
    assert services - NOT_YET == in_values


def test_defaults_are_those_of_the_code() -> None:
    """A default that is written twice is the same twice."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    assert ServiceSettings.model_fields["drain_seconds"].default == values["defaults"]["drainSeconds"]
    for name, service in values["services"].items():
        fields = settings_of(name).model_fields
        for field, value in service["settings"].items():
            if (name, field) in DELIBERATE:
                continue
            default = fields[field].default
            assert value == (",".join(default) if isinstance(default, tuple) else default), f"{name}.{field}"


@pytest.mark.usefixtures("_as_in_the_pod")
def test_the_object_store_takes_the_identity_of_the_pod() -> None:
    Admin.of(S3Settings(endpoint="https://s3.eu-central-1.amazonaws.com", region="eu-central-1"))


def test_the_site_secret_is_where_the_code_looks(rendered: Rendered) -> None:
    for pod in rendered.pods:
        for container in pod.containers:
            named = Path(rendered.environment(pod, container)["ISOCENTER_SITE_KEY_FILE"])
            [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
            [volume] = [volume for volume in pod.spec["volumes"] if volume["name"] == "keys"]

            assert str(named.parent) == mount["mountPath"]
            assert mount["readOnly"]
            assert [named.name] == [item["path"] for item in volume["secret"]["items"]]


def test_the_wrapping_key_is_where_the_code_looks(rendered: Rendered) -> None:
    for pod in rendered.pods:
        for container in pod.containers:
            named = Path(rendered.environment(pod, container)["ISOCENTER_KEYS_FILE"])
            [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "wrap"]
            [volume] = [volume for volume in pod.spec["volumes"] if volume["name"] == "wrap"]

            assert str(named.parent) == mount["mountPath"]
            assert mount["readOnly"]
            assert [named.name] == [item["path"] for item in volume["secret"]["items"]]
            assert not volume["secret"]["defaultMode"] & 0o027


def test_a_key_service_needs_no_key_in_the_pod(the_helm: Helm) -> None:
    rendered = Rendered.of(
        the_helm,
        *("--set", "wrappingKey.settings.wrapper=kms,wrappingKey.settings.kms_key=alias/isocenter"),
        *("--set", "networkPolicy.egress.keys.to[0].ipBlock.cidr=10.0.0.0/8"),
        values=SETS["minimal"],
    )
    for pod in rendered.pods:
        environment = _environment(rendered, pod)
        assert "ISOCENTER_KEYS_FILE" not in environment
        assert "alias/isocenter" == environment["ISOCENTER_KEYS_KMS_KEY"]
        assert "wrap" not in {volume["name"] for volume in pod.spec["volumes"]}


def test_authorities_are_given_where_tls_is_used(large: Rendered, rendered: Rendered) -> None:
    for pod in large.pods:
        environment = _environment(large, pod)
        [trust] = [mount for mount in pod.containers[0]["volumeMounts"] if mount["name"] == "trust"]
        for variable in ("ISOCENTER_KAFKA_CA_FILE", "ISOCENTER_S3_CA_FILE"):
            assert f"{trust['mountPath']}/ca.crt" == environment[variable]
    for pod in rendered.pods:
        environment = _environment(rendered, pod)
        if environment.get("ISOCENTER_KAFKA_SECURITY_PROTOCOL") == "PLAINTEXT":
            assert "ISOCENTER_KAFKA_CA_FILE" not in environment
