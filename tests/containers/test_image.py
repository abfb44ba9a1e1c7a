"""The images as an orchestrator runs them: nobody in particular, nothing to write to or to build with."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed.docker import REPOSITORY, SERVICES, TAG, Docker

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(900)]

LOCKED_DOWN = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
FORBIDDEN = ("pip", "pip3", "uv", "gcc", "cc", "g++", "make", "git", "curl", "wget", "go", "cargo")
IMPORTED = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"
MOST_BYTES = 260 << 20
"""Of what we add to the base image; measured: ingest 121 MB, cli about 200 MB."""


def image(service: str) -> str:
    return f"isocenter-{service}:{TAG}"


def inspected(engine: Docker, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(engine("inspect", name).stdout)
    return found[0]


@pytest.mark.parametrize("service", SERVICES)
def test_runs_as_a_numeric_user_with_a_signal_and_labels(images: Docker, service: str) -> None:
    config = inspected(images, image(service))["Config"]
    assert "10001:10001" == config["User"]
    assert "SIGTERM" == config["StopSignal"]
    assert ["python", "-m", f"isocenter.{service}"] == config["Entrypoint"]
    labels = config["Labels"]
    assert f"isocenter-{service}" == labels["org.opencontainers.image.title"]
    assert TAG == labels["org.opencontainers.image.version"]
    assert "unknown" != labels["org.opencontainers.image.revision"]
    assert "Apache-2.0" == labels["org.opencontainers.image.licenses"]


@pytest.mark.parametrize("service", SERVICES)
def test_has_no_tool_to_build_or_install_with(images: Docker, service: str) -> None:
    look = "import shutil,sys; print([t for t in sys.argv[1:] if shutil.which(t)])"
    done = images("run", "--rm", "--entrypoint=python", image(service), "-c", look, *FORBIDDEN)
    assert "[]" == done.stdout.strip()
    assert images(
        "run", "--rm", "--entrypoint=python", image(service), "-c", IMPORTED, "pip", check=False
    ).returncode


def test_has_its_own_service_and_no_other(images: Docker) -> None:
    def has(service: str, module: str) -> bool:
        done = images(
            "run", "--rm", "--entrypoint=python", image(service), "-c", IMPORTED, module, check=False
        )
        return done.returncode == 0

    table = {(one, other): has(one, f"isocenter.{other}") for one in SERVICES[:3] for other in SERVICES}
    assert {(one, one) for one in SERVICES[:3]} == {pair for pair, there in table.items() if there}


@pytest.mark.parametrize("service", SERVICES)
def test_adds_little_to_its_base(images: Docker, service: str) -> None:
    whole = inspected(images, image(service))["Size"]
    base = inspected(images, "python:3.13-slim-trixie")["Size"]
    print(f"\n{image(service)}: {whole / 1e6:.0f} MB, of which the base is {base / 1e6:.0f} MB")  # noqa: T201
    assert whole - base < MOST_BYTES


@pytest.fixture
def name(images: Docker) -> Iterator[str]:
    """A container's name; it is gone afterwards."""
    given = f"isocenter-test-{secrets.token_hex(4)}"
    yield given
    images("rm", "--force", "--volumes", given, check=False)


@pytest.mark.parametrize("service", ["ingest", "indexer", "gateway"])
def test_gets_healthy_on_a_read_only_file_system_and_stops_when_told(
    images: Docker, service: str, name: str
) -> None:
    data = "--tmpfs=/data:mode=0700,uid=10001,gid=10001"
    images(
        "run",
        "--detach",
        "--name",
        name,
        *LOCKED_DOWN,
        "--tmpfs=/tmp",
        data,
        "--health-interval=1s",
        image(service),
    )
    until = time.monotonic() + 60
    while (state := inspected(images, name)["State"])["Health"]["Status"] != "healthy":
        log = images("logs", name).stdout
        assert state["Running"], log
        assert time.monotonic() < until, f"{state['Health']}\n{log}"
        time.sleep(0.5)
    assert '"ready": true' in state["Health"]["Log"][-1]["Output"]

    images("stop", "--time=60", name)
    state = inspected(images, name)["State"]
    assert (0, False) == (state["ExitCode"], state["OOMKilled"]), images("logs", name).stdout


def test_says_what_is_wrong_and_that_a_restart_will_not_help(images: Docker) -> None:
    done = images("run", "--rm", *LOCKED_DOWN, image("ingest"), check=False)
    assert 78 == done.returncode
    assert "/data cannot be written" in done.stdout + done.stderr


def test_a_module_in_the_working_directory_is_not_imported(images: Docker) -> None:
    done = images(
        "run", "--rm", "--entrypoint=sh", image("ingest"), "-c",
        "echo 'raise SystemExit(3)' >/data/json.py && python -c 'import json'", check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stdout


@pytest.mark.parametrize("service", ["ingest", "cli"])
def test_the_bill_of_materials_is_that_of_the_lock_and_the_image(
    images: Docker, service: str, tmp_path: Path
) -> None:
    uv = REPOSITORY / ".tools" / "bin" / "uv"
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "sbom.py"),
        "--uv",
        str(uv) if uv.exists() else "uv",
    ]
    environment = {"DOCKER_HOST": images.host} if images.host else {}
    subprocess.run(
        [*command, "--into", str(tmp_path), service], env={**os.environ, **environment}, check=True
    )

    bill = json.loads((tmp_path / f"isocenter-{service}.cdx.json").read_text())
    versions = {one["name"]: one["version"] for one in bill["components"]}
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    locked = {one["name"]: one["version"] for one in lock["package"]}
    assert "CycloneDX" == bill["bomFormat"]
    assert locked["pydicom"] == versions["pydicom"]
    assert "libc6" in versions
    assert "pytest" not in versions
    assert next(one for one in bill["components"] if one["name"] == "pydicom")["externalReferences"]
