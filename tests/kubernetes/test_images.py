"""What the chart takes for granted of the images, read in the Dockerfile that makes them."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.kubernetes.chart import CHART, ROOT, Rendered

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return DOCKERFILE.read_text()


def test_every_image_that_a_pod_names_is_built(minimal: Rendered, dockerfile: str) -> None:
    built = set(re.findall(r"^FROM runtime AS service-(\S+)$", dockerfile, re.MULTILINE))
    named = {
        container["image"].rpartition("/")[2].partition(":")[0].removeprefix("isocenter-")
        for pod in minimal.pods
        for container in pod.containers
    }

    assert named <= built


def test_the_user_is_the_one_of_the_images(dockerfile: str) -> None:
    [user] = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    values = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurity"]

    assert user == (str(values["runAsUser"]), str(values["runAsGroup"]))


def test_an_image_starts_its_service_by_itself(minimal: Rendered, dockerfile: str) -> None:
    """So the chart names no command for services, and a command for the steps of the set-up."""
    for pod in minimal.pods:
        for container in pod.containers:
            assert ("command" in container) != pod.served
    for name in ("ingest", "indexer", "gateway"):
        assert f'ENTRYPOINT ["python", "-m", "isocenter.{name}"]' in dockerfile
