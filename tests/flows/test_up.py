"""Starting, refusing to start, and stopping."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.flows.helpers import ENVIRONMENT, isocenter

from isocenter.cli.errors import Exit
from isocenter.cli.scu import VERIFICATION, Association
from isocenter.cli.state import find_running

PORTS = ("--dicom-port", "0", "--http-port", "0")


@contextmanager
def _up(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """The process, and the one line that it prints when it takes work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "isocenter.cli", "up", "--json", *PORTS, "--data-dir", str(data_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_success(tmp_path: Path, number: signal.Signals) -> None:
    with _up(tmp_path) as (process, said):
        running = find_running(tmp_path)
        assert running is not None
        assert said == running.as_json()
        assert process.pid == running.pid
        assert all(isinstance(said[name], int) and said[name] for name in ("dicom_port", "http_port"))

        process.send_signal(number)

        assert 0 == process.wait(30)
        assert process.stdout is not None
        assert "" == process.stdout.read()
    assert find_running(tmp_path) is None


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """The first waits for an association that is open; the operator may not want to."""
    with _up(tmp_path) as (process, said):
        port = int(str(said["dicom_port"]))
        association = Association(
            "127.0.0.1", port, called="ISOCENTER", calling="TEST", contexts=[VERIFICATION]
        )
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        assert process.poll() is None

        process.send_signal(signal.SIGTERM)

        assert Exit.INTERRUPTED == process.wait(10)
        association.abort()


@pytest.mark.parametrize("option", ["--dicom-port", "--http-port"])
def test_a_port_that_is_taken_is_told(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"--dicom-port": 0, "--http-port": 0, option: taken.getsockname()[1]}
        arguments = [str(part) for pair in ports.items() for part in pair]

        done = isocenter("up", *arguments, data_dir=tmp_path, expect=Exit.MISCONFIGURED)

    assert "error: " in done.stderr
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr
    assert "" == done.stdout
    assert find_running(tmp_path) is None


def test_beyond_loopback_is_refused_while_there_is_no_sign_in(tmp_path: Path) -> None:
    done = isocenter("up", *PORTS, "--host", "0.0.0.0", data_dir=tmp_path, expect=Exit.MISCONFIGURED)  # noqa: S104 - refused is what is tested

    assert "sign-in" in done.stderr


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "site.key"
    key.parent.mkdir()
    key.write_bytes(b"k" * 32)
    key.chmod(0o644)

    done = isocenter("up", *PORTS, data_dir=tmp_path, expect=Exit.MISCONFIGURED)

    assert "chmod 600" in done.stderr
