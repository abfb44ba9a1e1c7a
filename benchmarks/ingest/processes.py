"""Starting a receiver, waiting for it, asking it, ending it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 60.0


class TargetFailed(Exception):
    """The receiver did not start, or died."""


@contextmanager
def process(
    command: Sequence[str], root: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The receiver in its own process group, with TCP_NODELAY=1 (read by every DCMTK based program)."""
    with (root / "log").open("wb") as log:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=root,
            env={**os.environ, "TCP_NODELAY": "1", **(environment or {})},
            start_new_session=True,
        )
        try:
            yield started
            if started.poll() is not None:
                raise TargetFailed(f"{command[0]} ended with status {started.returncode}: {tail_of(root)}")
        finally:
            _end(started)


def _end(running: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
        try:
            os.killpg(running.pid, number)
        except ProcessLookupError:
            break
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        break
    running.wait()


def await_ready(running: subprocess.Popen[bytes], ready: Callable[[], bool], root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if running.poll() is not None:
            raise TargetFailed(f"ended with status {running.returncode}: {tail_of(root)}")
        try:
            if ready():
                return
        except (OSError, http.client.HTTPException, ValueError, TargetFailed):
            pass
        time.sleep(0.05)
    raise TargetFailed(f"not ready after {START_SECONDS:.0f} s: {tail_of(root)}")


def accepts(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def json_of(method: str, port: int, path: str) -> Any:
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


def tail_of(root: Path) -> str:
    return (root / "log").read_text(errors="replace")[-800:]


def version_of(command: Sequence[str]) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    first = (output.stdout or output.stderr).strip().splitlines()
    return first[0].strip("$ ") if first else "unknown"
