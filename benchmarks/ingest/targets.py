"""The receivers under test, each started fresh in an empty directory with its own defaults."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.embedded import Embedded, NotStarted, free_port

START_SECONDS = 60.0


class TargetFailed(Exception):
    """The receiver did not start, or died."""


@dataclass(frozen=True, slots=True)
class Running:
    """A receiver that takes associations. `count(study_uids)` is the instances it has, by its own account."""

    pid: int
    port: int
    called: str
    count: Callable[[Sequence[str]], int]


@dataclass(frozen=True, slots=True)
class Target:
    """Attributes:
    durable: the bytes of an instance are flushed to stable storage before its Success.
    what: what it does before it answers, in words for the results page.
    """

    name: str
    version: str
    durable: bool
    what: str
    settings: dict[str, Any]
    start: Callable[[Path], Any]


def orthanc() -> Target | None:
    """Debian's Orthanc with its defaults, which include SyncStorageArea. None where it is not installed."""
    program = shutil.which("Orthanc")
    if program is None:
        return None
    settings = {"SyncStorageArea": True, "plugins": "none", "everything else": "as Orthanc's defaults"}

    @contextmanager
    def start(root: Path) -> Iterator[Running]:
        dicom, web = free_port(), free_port()
        configuration = root / "orthanc.json"
        configuration.write_text(
            json.dumps(
                {
                    "Name": "BENCH",
                    "StorageDirectory": str(root / "storage"),
                    "IndexDirectory": str(root / "index"),
                    "DicomPort": dicom,
                    "HttpPort": web,
                    "SyncStorageArea": True,
                    "Plugins": [],
                }
            )
        )

        def count(_: Sequence[str]) -> int:
            return int(_json("GET", web, "/statistics")["CountInstances"])

        with _process([program, str(configuration)], root) as process:
            _await(process, lambda: _accepts(dicom) and count([]) == 0, root)
            yield Running(process.pid, dicom, "ORTHANC", count)

    return Target(
        "orthanc_sync",
        _version([program, "--version"]),
        durable=True,
        what="writes and syncs the file, writes its SQLite index, then answers",
        settings=settings,
        start=start,
    )


def storescp() -> Target | None:
    """DCMTK's storescp as it comes. It writes files and does NOT sync them."""
    program = shutil.which("storescp")
    if program is None:
        return None

    @contextmanager
    def start(root: Path) -> Iterator[Running]:
        port = free_port()
        received = root / "received"
        received.mkdir()

        def count(_: Sequence[str]) -> int:
            return sum(1 for entry in received.iterdir() if entry.is_file())

        # --fork: one process per association. Without it storescp serves one association at a time and the
        # rows with four associations would measure its queue.
        command = [program, "--fork", "--output-directory", str(received), str(port)]
        with _process(command, root) as process:
            _await(process, lambda: _accepts(port), root)
            yield Running(process.pid, port, "STORESCP", count)

    return Target(
        "storescp",
        _version([program, "--version"]),
        durable=False,
        what="decodes, writes the file and answers; no sync, no index",
        settings={"options": "--fork", "fsync": False},
        start=start,
    )


def isocenter() -> Target | None:
    """This platform embedded, as `isocenter up` runs it. None where it is not installed."""
    if importlib.util.find_spec("isocenter.cli.main") is None:
        return None

    @contextmanager
    def start(root: Path) -> Iterator[Running]:
        try:
            with Embedded(root) as platform:

                def count(studies: Sequence[str]) -> int:
                    return sum(_study_instances(platform.http_port, study) for study in studies)

                yield Running(platform.pid, platform.dicom_port, platform.ae_title, count)
                if not platform.running:
                    raise TargetFailed(f"isocenter ended: {platform.log.read_text(errors='replace')[-800:]}")
        except NotStarted as error:
            raise TargetFailed(str(error)) from error

    return Target(
        "isocenter",
        importlib.metadata.version("isocenter"),
        durable=True,
        what="writes, hashes and syncs the object, commits the event with a sync, answers; indexes after",
        settings={"mode": "embedded", "sealing": "none", "fsync": True},
        start=start,
    )


@contextmanager
def _process(command: Sequence[str], root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The receiver in its own process group, with TCP_NODELAY=1 (read by every DCMTK based program)."""
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=root,
            env={**os.environ, "TCP_NODELAY": "1"},
            start_new_session=True,
        )
        try:
            yield process
            if process.poll() is not None:
                raise TargetFailed(f"{command[0]} ended with status {process.returncode}: {_tail(root)}")
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        break
    process.wait()


def _await(process: subprocess.Popen[bytes], ready: Callable[[], bool], root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TargetFailed(f"ended with status {process.returncode}: {_tail(root)}")
        try:
            if ready():
                return
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.05)
    raise TargetFailed(f"not ready after {START_SECONDS:.0f} s: {_tail(root)}")


def _accepts(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def _json(method: str, port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers={"Accept": "application/dicom+json, application/json"})
        response = connection.getresponse()
        body = response.read()
        if response.status == 204:
            return []
        if response.status != 200:
            raise TargetFailed(f"{method} answered {response.status}")
        return json.loads(body)
    finally:
        connection.close()


def _study_instances(port: int, study: str) -> int:
    found = _json("GET", port, f"/dicom-web/studies?StudyInstanceUID={study}&includefield=00201208")
    return sum(int(item["00201208"]["Value"][0]) for item in found)


def _tail(root: Path) -> str:
    return (root / "log").read_text(errors="replace")[-800:]


def _version(command: Sequence[str]) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    first = (output.stdout or output.stderr).strip().splitlines()
    return first[0].strip("$ ") if first else "unknown"
