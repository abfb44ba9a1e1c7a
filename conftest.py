"""Real servers for every suite, one of each per test run. See testbed/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from testbed.kafka import KafkaServer
    from testbed.mongo import MongoServer
    from testbed.radosgw import RadosGateway
    from testbed.server import Server

S = TypeVar("S", bound="Server")


SHARED_FOLDERS = {"cluster", "containers", "kubernetes", "migrate", "observability"}
"""Their tests share servers that take long to start."""
OWN_SERVERS = {"test_faults.py"}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist one worker runs the whole of a file, or of a folder whose tests share servers."""
    for item in items:
        folder = item.path.parent
        together = folder.name in SHARED_FOLDERS and item.path.name not in OWN_SERVERS
        item.add_marker(pytest.mark.xdist_group(str(folder if together else item.path)))


def _running(make: Callable[[Path], S], folder: Path) -> Iterator[S]:
    """The server; a loud skip where it cannot be had, and a failure where it should have been."""
    from testbed.cache import must_be_available  # noqa: PLC0415 - a service's suite alone needs no test bed
    from testbed.server import ServerUnavailable  # noqa: PLC0415

    try:
        server = make(folder)
        server.start()
    except ServerUnavailable as error:
        reason = f"NOT RUN: {error}"
        if must_be_available():
            pytest.fail(reason)
        pytest.skip(reason)
    print(f"\ntest bed: {server.version}")  # noqa: T201 - which one it was belongs into the log
    try:
        yield server
    finally:
        server.discard()


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    from testbed.kafka import kafka_server as make  # noqa: PLC0415

    yield from _running(make, tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    from testbed.mongo import mongo_server as make  # noqa: PLC0415

    yield from _running(make, tmp_path_factory.mktemp("mongo"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
    from testbed.radosgw import s3_server as make  # noqa: PLC0415

    yield from _running(make, tmp_path_factory.mktemp("s3"))
