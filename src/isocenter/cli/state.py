"""The platform that runs on a data directory: it holds a lock, and says in a file where it listens."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isocenter.cli.errors import CommandError, Exit

_LOCK = "platform.lock"
_STATE = "platform.json"
_LOOK_SECONDS = 1.0
"""Who looks whether a platform runs (`find_running`) shares the lock for an instant: longer than that it is
held by one that works."""


@dataclass(frozen=True, slots=True)
class RunningPlatform:
    """What `isocenter up` says about itself. Hosts are what a client on this machine connects to."""

    pid: int
    data_dir: str
    host: str
    dicom_port: int
    http_port: int
    ae_title: str
    started_at: str

    @property
    def dicom_web(self) -> str:
        return f"http://{self.host}:{self.http_port}/dicom-web"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "dicom_web": self.dicom_web}


class DataDirLock:
    """Held by one process per data directory, for as long as it lives: the kernel lets go when it dies."""

    def __init__(self, data_dir: Path, descriptor: int) -> None:
        self._data_dir = data_dir
        self._descriptor = descriptor

    def announce(self, platform: RunningPlatform) -> None:
        """Writes the state file whole or not at all."""
        temporary = self._data_dir / f".{_STATE}"
        temporary.write_text(json.dumps(asdict(platform)) + "\n")
        temporary.chmod(0o600)
        temporary.replace(self._data_dir / _STATE)

    def withdraw(self) -> None:
        (self._data_dir / _STATE).unlink(missing_ok=True)


@contextmanager
def hold(data_dir: Path, *, purpose: str) -> Iterator[DataDirLock]:
    """Creates the data directory (mode 0700) and holds it.

    Raises:
        CommandError: another process holds it, or it cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(data_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(
            f"cannot use the data directory {data_dir}: {error.strerror}",
            hint="name another with --data-dir, or give it to this user",
            code=Exit.MISCONFIGURED,
        ) from error
    try:
        if not _locked(descriptor):
            raise _busy(data_dir, descriptor, purpose)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        lock = DataDirLock(data_dir, descriptor)
        # What a killed platform said about itself would now be taken for what this one says.
        lock.withdraw()
        try:
            yield lock
        finally:
            lock.withdraw()
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    until = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        else:
            return True


def find_running(data_dir: Path) -> RunningPlatform | None:
    """The platform that runs on this data directory and takes work, if one does."""
    try:
        descriptor = os.open(data_dir / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return RunningPlatform(**json.loads((data_dir / _STATE).read_text()))
        except (OSError, ValueError, TypeError):
            return None  # it is starting, or stopping
    finally:
        os.close(descriptor)
    return None


def require_running(data_dir: Path) -> RunningPlatform:
    """Raises CommandError."""
    platform = find_running(data_dir)
    if platform is None:
        raise CommandError(
            f"no platform runs on {data_dir}",
            hint="isocenter up (in another terminal), or --data-dir",
            code=Exit.UNREACHABLE,
        )
    return platform


def _busy(data_dir: Path, descriptor: int, purpose: str) -> CommandError:
    owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    return CommandError(
        f"cannot {purpose}: process {owner} holds {data_dir}",
        hint=f"stop it first (kill {owner}), or use another --data-dir",
        code=Exit.BUSY,
    )
