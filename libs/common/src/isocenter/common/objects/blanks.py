"""Empty files whose names are durable already: one sync of their directory for many."""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from isocenter.common.objects.files import create, sync_directory

if TYPE_CHECKING:
    from isocenter.common.objects.workspace import Workspace

_COUNT: Final = 16
"""Made at a time: they wait as open files, and he who makes them waits for it."""


class Blanks:
    """A file that is begun in one of these is durable by a sync of itself alone."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._ready: deque[tuple[Path, int]] = deque()
        self._lock = threading.Lock()

    def take(self) -> tuple[Path, int]:
        """Path and descriptor; both are the caller's. Raises OSError."""
        with self._lock:
            if not self._ready:
                self._make()
            return self._ready.popleft()

    def close(self) -> None:
        """What was not taken goes with the workspace."""
        with self._lock:
            while self._ready:
                os.close(self._ready.pop()[1])

    def _make(self) -> None:
        try:
            for _ in range(_COUNT):
                path = self._workspace.new_file()
                self._ready.append((path, create(path)))
            sync_directory(self._workspace.path)
        except BaseException:
            while self._ready:
                path, descriptor = self._ready.pop()
                os.close(descriptor)
                path.unlink(missing_ok=True)
            raise
