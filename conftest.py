"""Real servers for every suite, one of each per test run. See testbed/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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


@pytest.hookimpl(optionalhook=True)  # a run without pytest-xdist does not know it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """One worker runs the whole of a file, or of a folder whose tests share servers.

    `--dist loadgroup` would do it with a mark, but pytest-xdist 3.8 groups nothing under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - a service's suite alone needs none

    class ByServers(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist ships no types
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.partition("::")[0])
            together = path.parent.name in SHARED_FOLDERS and path.name not in OWN_SERVERS
            return str(path.parent if together else path)

    return ByServers(config, log)


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
