"""What can be said of the Dockerfiles and the compose file without an engine."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from testbed.docker import PYTHON_IMAGE, SERVICES, TAG
from testbed.stand_ins import IMAGES, MISSING

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OURS = [name for name, service in COMPOSE["services"].items() if "isocenter-" in service["image"]]


@pytest.mark.parametrize("name", ["Dockerfile", "stand-ins/Dockerfile"])
def test_hadolint_finds_nothing(name: str) -> None:
    done = subprocess.run([HADOLINT, DEPLOY / name], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stdout)


def test_the_dockerfile_pulls_no_front_end() -> None:
    assert not re.search(r"^#\s*syntax\s*=", DOCKERFILE.read_text(), re.MULTILINE | re.IGNORECASE)


def test_every_service_has_a_stage_and_the_stand_in_its_base() -> None:
    text = DOCKERFILE.read_text()
    assert set(SERVICES) == set(re.findall(r"^FROM runtime AS service-(\w+)$", text, re.MULTILINE))
    assert f"ARG PYTHON_IMAGE={PYTHON_IMAGE}\n" in text


def test_entry_points_are_in_exec_form() -> None:
    entries = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert len(SERVICES) == len(entries)
    assert all(entry.startswith('["python", "-m", "isocenter.') for entry in entries)


def test_every_image_of_the_compose_file_is_pinned_and_known() -> None:
    used = {
        service["image"] for service in COMPOSE["services"].values() if "ISOCENTER_" not in service["image"]
    }
    assert {*IMAGES.values(), *MISSING.values()} - {PYTHON_IMAGE} == used
    assert all(image.rpartition(":")[2] not in {"latest", ""} for image in used)


def test_the_product_images_of_the_compose_file_are_those_that_are_built() -> None:
    named = {COMPOSE["services"][name]["image"] for name in OURS}
    assert {
        f"${{ISOCENTER_IMAGE_PREFIX:-isocenter-}}{one}:${{ISOCENTER_TAG:-{TAG}}}" for one in SERVICES
    } == named


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_has_no_rights_and_bounded_resources(name: str) -> None:
    service = COMPOSE["services"][name]
    assert ["ALL"] == service["cap_drop"]
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert service.get("privileged") is None
    assert "max-size" in service["logging"]["options"]
    if name in OURS:
        assert service["read_only"] is True
        assert set(service.get("cap_add", ())) == set()
        assert service["user"].startswith("${ISOCENTER_UID:-10001}")
    else:
        assert set(service.get("cap_add", ())) <= {"DAC_OVERRIDE"}
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory"} == set(limits)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_ports_are_published_on_loopback_by_three_services_only(name: str) -> None:
    ports = COMPOSE["services"][name].get("ports", [])
    assert bool(ports) == (name in {"gateway", "lb", "grafana"})
    assert all(port.startswith("127.0.0.1:") for port in ports)
    networks = COMPOSE["services"][name].get("networks", ["inside"])
    assert ("outside" in networks) == bool(ports)
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_no_secret_is_in_the_environment() -> None:
    for name, service in COMPOSE["services"].items():
        for variable in service.get("environment", {}):
            secret = re.search(r"PASSWORD|SECRET|_KEY$|MONGO_URI", variable)
            assert not secret or variable.endswith("_FILE"), f"{name}: {variable}"


def test_every_service_is_given_the_way_to_the_database() -> None:
    """Ingest answers storage commitment from it."""
    for name in ("ingest", "indexer", "gateway"):
        assert "isocenter_mongo_uri" in COMPOSE["services"][name]["secrets"]
        assert "mongo-init" in COMPOSE["services"][name]["depends_on"]


def test_two_replicas_of_ingest_and_indexer() -> None:
    for name in ("ingest", "indexer"):
        assert 2 == COMPOSE["services"][name]["deploy"]["replicas"]


def test_what_is_mounted_is_there() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"


def test_prepared_secrets_are_closed_and_stay(tmp_path: Path) -> None:
    command = [sys.executable, str(DEPLOY / "compose" / "prepare.py"), str(tmp_path)]
    subprocess.run(command, check=True)
    folder = tmp_path / "secrets"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(COMPOSE["secrets"]) == set(before)
    assert all(0o600 == stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir())
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert len(set(before.values())) == len(before)
    env = (tmp_path / ".env").read_text()
    assert not [value for value in before.values() if value.decode("latin-1") in env]

    subprocess.run(command, check=True)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_secrets_never_get_into_git() -> None:
    names = ["deploy/.env", "deploy/.secrets/site_key"]
    done = subprocess.run(
        ["git", "check-ignore", *names], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert names == done.stdout.split()


def test_nothing_of_the_build_context_but_sources() -> None:
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert not any(line.startswith("!") and (".env" in line or ".git" in line) for line in ignore)
    assert os.access(REPOSITORY / "scripts" / "install_docker.sh", os.X_OK)
