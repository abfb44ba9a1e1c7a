"""Docker, the images and the cluster in containers, once per run."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import NoReturn

import pytest
from testbed import stand_ins
from testbed.cache import must_be_available
from testbed.compose import Compose, prepare
from testbed.docker import Docker, build_services, docker
from testbed.server import ServerUnavailable, free_port
from testbed.stand_ins import Provided

PORTS = ("ISOCENTER_DICOM_PORT", "ISOCENTER_STOW_PORT", "ISOCENTER_HTTP_PORT")


@pytest.fixture(scope="session")
def engine() -> Iterator[Docker]:
    """A Docker engine: the machine's, else one of ours for this run.

    An engine needs rights over the kernel that root in a sandbox may lack: a skip, in CI too, and a loud one.
    """
    try:
        with docker() as running:
            yield running
    except ServerUnavailable as error:
        pytest.skip(f"NOT RUN: {error}")


@pytest.fixture(scope="session")
def provided(engine: Docker) -> Provided:
    """Base and engine images; says loudly which are stand-ins and which are missing."""
    try:
        images = stand_ins.provide(engine)
    except ServerUnavailable as error:
        _not_run(error)
    print(f"\n{images}")  # noqa: T201 - which ones they were belongs into the log
    return images


@pytest.fixture(scope="session")
def images(engine: Docker, provided: Provided) -> Docker:
    """An engine that has the product's images."""
    build_services(engine)
    return engine


@pytest.fixture(scope="session")
def cluster(
    images: Docker, provided: Provided, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Compose]:
    """The compose file as it is shipped, up and ready; ports, secrets and the time to settle are ours."""
    folder = tmp_path_factory.mktemp("compose")
    prepare(folder)
    ports = {name: free_port() for name in PORTS}
    with (folder / ".env").open("a") as env:
        env.writelines(f"{name}={port}\n" for name, port in ports.items())
        env.write("ISOCENTER_QUIET_SECONDS=5\nISOCENTER_SESSION_TIMEOUT_MS=6000\n")
    compose = Compose(images, f"isocenter-test-{secrets.token_hex(3)}", folder / ".env", ports=ports)
    try:
        compose.up()
        yield compose
    finally:
        compose.down()


def _not_run(error: ServerUnavailable) -> NoReturn:
    if must_be_available():
        pytest.fail(f"NOT RUN: {error}")
    pytest.skip(f"NOT RUN: {error}")
