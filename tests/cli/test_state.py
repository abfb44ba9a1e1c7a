from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isocenter.cli import state
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.state import RunningPlatform


def _platform(data_dir: Path) -> RunningPlatform:
    return RunningPlatform(
        os.getpid(), str(data_dir), "127.0.0.1", 11112, 8080, "ISOCENTER", "2026-01-01T00:00:00Z"
    )


def test_a_running_platform_is_found_and_gone_when_it_ends(tmp_path: Path) -> None:
    with state.hold(tmp_path, purpose="start") as lock:
        assert state.find_running(tmp_path) is None

        lock.announce(_platform(tmp_path))
        found = state.find_running(tmp_path)

    assert _platform(tmp_path) == found
    assert state.find_running(tmp_path) is None


def test_a_second_platform_is_refused_by_pid(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from isocenter.cli import state\n"
        "with state.hold(pathlib.Path(sys.argv[1]), purpose='start'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(CommandError, match=f"process {holder.pid} holds") as raised,
            state.hold(tmp_path, purpose="start"),
        ):
            pass
        holder.kill()

    assert Exit.BUSY is raised.value.code
    with state.hold(tmp_path, purpose="start"):
        pass  # the lock of a killed process is free, and its state file does no harm


def test_a_state_file_without_a_lock_is_no_platform(tmp_path: Path) -> None:
    """After `kill -9` the file is still there."""
    with state.hold(tmp_path, purpose="start") as lock:
        lock.announce(_platform(tmp_path))
        kept = (tmp_path / "platform.json").read_bytes()
    (tmp_path / "platform.json").write_bytes(kept)

    assert state.find_running(tmp_path) is None


def test_the_data_directory_is_closed_to_others(tmp_path: Path) -> None:
    fresh = tmp_path / "new" / "data"
    with state.hold(fresh, purpose="start") as lock:
        lock.announce(_platform(fresh))

        assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
        assert stat.S_IMODE((fresh / "platform.json").stat().st_mode) == 0o600


def test_a_data_directory_that_is_a_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()

    with pytest.raises(CommandError) as raised, state.hold(path, purpose="start"):
        pass

    assert Exit.MISCONFIGURED is raised.value.code
    assert raised.value.hint


def test_a_starting_platform_is_not_taken_for_the_one_that_was_killed(tmp_path: Path) -> None:
    """The new one holds the lock and has not said where it listens; the file says where the old one did."""
    with state.hold(tmp_path, purpose="start") as lock:
        lock.announce(_platform(tmp_path))
        kept = (tmp_path / "platform.json").read_bytes()
    (tmp_path / "platform.json").write_bytes(kept)

    with state.hold(tmp_path, purpose="start"):
        assert state.find_running(tmp_path) is None


def test_who_only_looks_does_not_stop_a_platform_from_starting(tmp_path: Path) -> None:
    (tmp_path / "platform.lock").touch()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.0005):
            state.find_running(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            with state.hold(tmp_path, purpose="start"):
                pass
    finally:
        done.set()
        for looker in lookers:
            looker.join()
