"""What is refused, and in which words."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from testbed.helm import Helm
from tests.kubernetes.chart import CHART, EXAMPLES, ROOT, SETS, Refused, Rendered

REQUIRED = (
    "siteKey.existingSecret",
    "wrappingKey.existingSecret",
    "kafka.bootstrap",
    "kafka.existingSecret",
    "mongo.existingSecret",
    "s3.endpoint",
    "s3.existingSecret",
    "networkPolicy.egress.kafka.to",
    "networkPolicy.egress.mongo.to",
    "networkPolicy.egress.s3.to",
    "services.gateway.settings.serve_everyone_without_sign_in",
)


def test_everything_that_is_missing_is_said_at_once(the_helm: Helm) -> None:
    with pytest.raises(Refused) as refused:
        Rendered.of(the_helm, values=())

    for name in REQUIRED:
        assert f"- {name}: " in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("siteKey.existingSecret=", "siteKey.existingSecret: name of the Secret"),
        ("wrappingKey.existingSecret=", "wrappingKey.existingSecret: name of the Secret"),
        ("mongo.existingSecret=", "mongo.existingSecret: name of the Secret"),
        ("kafka.existingSecret=", "kafka.existingSecret: name of the Secret"),
        ("kafka.settings.security_protocol=SSL", "so nobody would use it"),
        ("s3.existingSecret=", "or s3.credentials: ambient"),
        ("telemetry.otlpEndpoint=http://otel:4318", "networkPolicy.egress.otlp.to: where it is"),
        ("networkPolicy.egress.s3.to=null", "networkPolicy.egress.s3.to: where it is"),
        ("services.gateway.settings.serve_everyone_without_sign_in=false", "reads every study"),
        ("services.ingest.autoscaling.minReplicas=9", "minReplicas is more than maxReplicas"),
    ],
)
def test_a_contradiction_is_refused_in_words(the_helm: Helm, change: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        Rendered.of(the_helm, "--set", change, values=SETS["minimal"])

    assert said in str(refused.value)
    assert 1 == str(refused.value).count("\n  - "), "one thing is wrong, one thing is said"


@pytest.mark.parametrize(
    "change",
    [
        "image.tag=latest",
        "services.ingest.image.tag=latest",
        "services.ingest.image.digest=sha256:short",
        "services.ingest.replica=3",
        "service.ingest.replicas=3",
        "defaults.replicas=0",
        "defaults.maxUnavailable=0",
        "defaults.maxUnavailable=0%",
        "defaults.drainSeconds=0",
        "defaults.preStopSeconds=0",
        "defaults.shutdownMarginSeconds=0",
        "defaults.healthPort=80",
        "defaults.topologySpread.zone=Sometimes",
        "defaults.volumes.data=0",
        "podSecurity.runAsUser=0",
        "listenAddress=127.0.0.1",
        "kafka.bootstrap=kafka",
        "kafka.settings.security_protocol=TLS",
        "kafka.settings.password=hunter2",
        "mongo.settings.uri=mongodb://user:password@mongo/",
        "s3.settings.secret_key=hunter2",
        "s3.endpoint=https://user:password@s3.example",
        "s3.credentials=none",
        "services.ingest.env.ISOCENTER_S3_SECRET_KEY=hunter2",
        "services.ingest.settings.drain_seconds=5",
        "services.ingest.settings.Max=5",
        "services.ingest.connects={internet}",
        "services.ingest.ports.dicom.port=104",
        "services.ingest.ports.dicom.from={everybody}",
        "services.ingest.ports.dicom.from[0].ipBlock.cidr=10.0.0.0",
        "services.ingest.resources.requests=null",
        "services.ingest.autoscaling.cpuPercent=0",
        "services.Ingest.connects={kafka}",
        "services.setup.connects={kafka}",
        "platform.settings.data_dir=/tmp",
        "telemetry.monitor.kind=Agent",
        "setup.steps=[]",
    ],
)
def test_the_schema_refuses(the_helm: Helm, change: str) -> None:
    how = "--set-json" if change.endswith("[]") else "--set"
    with pytest.raises(Refused, match="don't meet the specifications of the schema"):
        Rendered.of(the_helm, how, change, values=SETS["minimal"])


def test_zero_and_false_of_a_service_win_over_the_defaults(the_helm: Helm) -> None:
    rendered = Rendered.of(
        the_helm,
        "--set",
        "defaults.minReadySeconds=9,services.indexer.minReadySeconds=0,services.gateway.enabled=false",
        values=SETS["minimal"],
    )

    assert {"ingest": 9, "indexer": 0} == {
        pod.component: pod.owner["spec"]["minReadySeconds"] for pod in rendered.served
    }


def test_a_service_without_sign_in_may_be_left_out(the_helm: Helm) -> None:
    rendered = Rendered.of(
        the_helm,
        "--set",
        "services.gateway.settings.serve_everyone_without_sign_in=false,services.gateway.enabled=false",
        values=SETS["minimal"],
    )

    assert {"ingest", "indexer"} == {pod.component for pod in rendered.served}


def test_large_numbers_stay_whole(the_helm: Helm) -> None:
    """Numbers of YAML are floats to Helm: 2**32 would arrive as 4.294967296e+09."""
    rendered = Rendered.of(
        the_helm, "--set", "services.gateway.settings.max_inflated_bytes=8589934592", values=SETS["minimal"]
    )

    config = rendered.named("ConfigMap", "-gateway")["data"]
    assert "8589934592" == config["ISOCENTER_GATEWAY_MAX_INFLATED_BYTES"]
    assert "25" == config["ISOCENTER_GATEWAY_DRAIN_SECONDS"]


def test_with_roles_instead_of_keys_no_key_is_asked_for(the_helm: Helm) -> None:
    rendered = Rendered.of(the_helm, values=SETS["aws"])

    for pod in rendered.pods:
        for container in pod.containers:
            assert not [name for name in rendered.environment(pod, container) if name.endswith("_KEY")]
    for account in rendered.kind("ServiceAccount"):
        assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]


def test_the_chart_installs_the_version_of_this_repository() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["version"] == chart["appVersion"]


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("*.yaml"))])
def test_notes_say_who_may_come_in_and_how_long_a_stop_takes(
    the_helm: Helm, tmp_path: Path, name: str
) -> None:
    """Helm shows notes only with a cluster, so they are rendered as an object here."""
    copy = tmp_path / "isocenter"
    shutil.copytree(CHART, copy)
    (copy / "notes").write_text((CHART / "templates" / "NOTES.txt").read_text())
    (copy / "templates" / "shown.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shown}\n"
        'data:\n  notes: {{ tpl (.Files.Get "notes") . | quote }}\n'
    )

    done = the_helm.template(copy, "--show-only", "templates/shown.yaml", values=SETS[name])
    notes = yaml.safe_load(done.stdout)["data"]["notes"]

    assert f"demo-isocenter-ingest-{'dicom-tls' if name == 'airgapped' else 'dicom'}:" in notes
    assert "ingest: 270 s" in notes if name == "large" else "ingest: 70 s" in notes
    assert ("nobody, except through" in notes) == (name in {"small", "aws", "airgapped"})
