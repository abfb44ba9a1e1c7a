"""The platform as a subprocess, `isocenter up --json`, for benchmarks and for tests across services."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from benchmarks.retrieve import ANY_SYNTAX, parts

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class NotStarted(Exception):
    """The platform ended or said nothing in time; the text ends with its log."""


class Process(Protocol):
    """The part of subprocess.Popen that is used here."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


Spawn = Callable[[Sequence[str], Path, Path, Mapping[str, str]], Process]
"""Command, file for standard output, file for standard error, environment -> a process in its own session."""


def spawn(command: Sequence[str], output: Path, log: Path, environment: Mapping[str, str]) -> Process:
    with output.open("ab") as out, log.open("ab") as error:
        process: Process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=error,
            env=dict(environment),
            start_new_session=True,
        )
        return process


class Embedded:
    """One data directory, and the platform that runs on it now. Ports stay the same over restarts.

    The process is the leader of its own group, so that `kill` reaches whatever it started. Standard
    error goes to `log` and standard output to `output`; both grow over restarts.
    """

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.data_dir = (root / "data").absolute()
        self.log = root / "platform.log"
        self.dicom_port = free_port()
        self.http_port = free_port()
        self.ae_title = "ISOCENTER"
        self._environment = dict(environment or {})
        self.output = root / "platform.out"
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise NotStarted("the platform is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def dicom_web(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def launch(self, using: Spawn = spawn) -> None:
        """Starts the process and does not wait."""
        command = [
            *(sys.executable, "-m", "isocenter.cli", "up", "--json"),
            *("--data-dir", str(self.data_dir)),
            *("--dicom-port", str(self.dicom_port)),
            *("--http-port", str(self.http_port)),
        ]
        environment = {**os.environ, "TCP_NODELAY": "1", **self._environment}
        self._process = using(command, self.output, self.log, environment)

    def wait_ready(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """What the state file in the data directory says once the platform takes work. Raises NotStarted."""
        deadline = time.monotonic() + seconds
        state = self.data_dir / "platform.json"
        while self.running and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                ready: dict[str, Any] = json.loads(state.read_text())
                if ready["pid"] == self.pid:  # a killed platform leaves its state file behind
                    self.ae_title = ready["ae_title"]
                    return ready
            time.sleep(0.02)
        raise NotStarted(f"the platform did not start: {self.log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """SIGKILL to the whole process group: no handler runs, nothing is flushed."""
        self._end(signal.SIGKILL, STOP_SECONDS)

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL where that is not enough. Returns the exit status, None if it did not run."""
        process = self._process
        if process is None:
            return None
        try:
            self._end(signal.SIGTERM, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL, STOP_SECONDS)
        return process.returncode

    def get(self, path: str, accept: str = "application/dicom+json") -> tuple[int, dict[str, str], bytes]:
        """Status, headers with lower-case names, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            connection.request("GET", path, headers={"Accept": accept})
            response = connection.getresponse()
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )
        finally:
            connection.close()

    def instances(self, path: str, *, at_least: int = 1, seconds: float = 30.0) -> list[bytes]:
        """The Part 10 streams below a study, series or instance, in the encoding they are stored in.

        Indexing follows the acknowledgement, so this asks again until there are enough or time is up.
        """
        deadline = time.monotonic() + seconds
        while True:
            status, headers, body = self.get(path, ANY_SYNTAX)
            found = parts(headers, body) if status == 200 else []
            if len(found) >= at_least:
                return found
            if time.monotonic() > deadline:
                raise NotStarted(f"answered {status} with {len(found)} instances of {at_least}")
            time.sleep(0.05)

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self._process is None or self._process.poll() is not None:
            return  # the number may be another process's by now
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            # Killed so early that it has no group of its own yet, and no children either.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
        self._process.wait(seconds)


def free_port() -> int:
    """A port that is free now, from below the range that the kernel gives to outgoing connections.

    A sender that tries again and again to reach a port inside that range can be given the same number for
    its own end, and then holds a connection to itself.
    """
    candidates = random.sample(range(15_000, 32_000), 200)
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise NotStarted("no free port on the loopback")
