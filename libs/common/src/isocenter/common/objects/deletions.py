"""Keys that were deleted while a journal may still hold them: a replay must not bring them back.

A deletion is an empty file whose name says the key's digest and the time; it is durable before the object's
file goes. Deleting is rare, so that they are cleared away only where no journal is left at all.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Final

from isocenter.common.objects.files import create, sync_directory
from isocenter.common.objects.journal import SUFFIX

_SUFFIX: Final = ".deleted"


class Deletions:
    """The deletions of every process of a directory. Raises (every method) OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, key: str) -> None:
        """Durable on return, if there is a journal at all."""
        if self._journals():
            path = self._directory / f"{_digest(key)}.{time.monotonic_ns()}{_SUFFIX}"
            os.close(create(path))
            sync_directory(self._directory)

    def was_deleted(self, key: str, since: int) -> bool:
        """After the record of that time was written. Holds as long as the caller has the claim of the key."""
        digest = _digest(key)
        return any(
            name.startswith(digest) and name.endswith(_SUFFIX) and int(name.split(".")[1]) > since
            for name in os.listdir(self._directory)  # noqa: PTH208 - looked at for each record
        )

    def clear(self) -> None:
        """Forgets them all, if no journal is left."""
        if not self._journals():
            for path in self._directory.glob(f"*{_SUFFIX}"):
                path.unlink(missing_ok=True)

    def _journals(self) -> bool:
        return any(path.name.endswith(SUFFIX) for path in self._directory.iterdir())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
