"""A directory for unfinished files; a lock file tells whether its owner still lives."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from isocenter.common.objects.files import sync_directory

_LOCK_SUFFIX: Final = ".lock"


class Workspace:
    """A private directory under `staging`, guarded by `flock` on a file beside it.

    The kernel drops the lock when the process ends, however it ends. So whoever gets the lock of another
    workspace knows that its owner is gone, without looking at process ids (which are reused, and differ
    between containers).
    Opening a workspace removes those of the dead. Their names go to `replay` first, all at once and by one
    opener at a time, and files that were linked into place and not let go of to `adopt`. Where either raises,
    what is left stays for the next opener. `others` names further ones, which left something elsewhere.
    """

    def __init__(
        self,
        staging: Path,
        adopt: Callable[[Path], None],
        replay: Callable[[list[str]], None] = lambda names: None,
        others: Callable[[], set[str]] = set,
    ) -> None:
        self._staging = staging
        self._adopt = adopt
        self._replay = replay
        self._others = others
        self._closed = False
        self._numbers = itertools.count()
        self._lock, self.path = self._claim()
        try:
            self.swept = self._sweep()
        except BaseException:
            self.close(leave=True)
            raise
        """How many workspaces of dead processes were removed."""

    def new_file(self) -> Path:
        return self.path / f"{next(self._numbers):x}"

    def close(self, *, leave: bool = False) -> None:
        """Idempotent. `leave`: as if the process had died, for the next opener."""
        if self._closed:
            return
        self._closed = True
        if leave:
            os.close(self._lock)
            return
        self._remove(self.path)
        with suppress(FileNotFoundError):
            self._lock_path(self.path.name).unlink()
        os.close(self._lock)

    def _lock_path(self, name: str) -> Path:
        return self._staging / f"{name}{_LOCK_SUFFIX}"

    def _claim(self) -> tuple[int, Path]:
        while True:
            name = secrets.token_hex(8)
            lock = _try_lock(self._lock_path(name), os.O_CREAT | os.O_EXCL)
            # Another opener's sweep may have come between creating the file and locking it.
            if lock is not None:
                path = self._staging / name
                path.mkdir(mode=0o700)
                sync_directory(self._staging)
                return lock, path

    def _sweep(self) -> int:
        opening = os.open(self._staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        dead: dict[Path, int] = {}
        try:
            fcntl.flock(opening, fcntl.LOCK_EX)
            # A power loss can keep a directory and lose its lock file; its owner is dead.
            names = {path.name.removesuffix(_LOCK_SUFFIX) for path in self._staging.iterdir()}
            names |= self._others()
            for lock_path in map(self._lock_path, names):
                lock = _try_lock(lock_path, os.O_CREAT)
                if lock is not None:
                    dead[lock_path] = lock
            if dead:
                self._replay([path.name.removesuffix(_LOCK_SUFFIX) for path in dead])
            for lock_path in dead:
                self._remove(self._staging / lock_path.name.removesuffix(_LOCK_SUFFIX))
                lock_path.unlink(missing_ok=True)
        finally:
            for lock in dead.values():
                os.close(lock)
            os.close(opening)
        return len(dead)

    def _remove(self, path: Path) -> None:
        with suppress(FileNotFoundError), os.scandir(path) as entries:
            for entry in entries:
                if entry.stat(follow_symlinks=False).st_nlink > 1:
                    self._adopt(Path(entry.path))
        shutil.rmtree(path, ignore_errors=True)


def _try_lock(path: Path, flags: int) -> int | None:
    """A descriptor that holds the lock of the file that is at `path` now, or None."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
