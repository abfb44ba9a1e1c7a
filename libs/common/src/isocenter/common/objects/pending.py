"""Second names of objects that were committed and not yet announced.

A commit links the finished file from the staging area into place. Where something must follow the commit,
the first name is simply kept until it has followed. It costs nothing, and if the process dies in between, the
name is what its successor finds: as many as were in hand at that moment, whatever the archive holds. Of what
went through the journal, the journal knows; it gets a second name when the journal forgets it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from isocenter.common.objects.files import sync_directory

_SUFFIX: Final = ".pending"


class PendingLinks:
    """Those of this process are known by key; those of dead ones lie in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._links: dict[str, Path] = {}
        self._lock = threading.Lock()

    def add(self, key: str, link: Path) -> None:
        with self._lock:
            self._links[key] = link

    def confirm(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._lock:
                link = self._links.pop(key, None)
            if link is not None:
                link.unlink(missing_ok=True)

    def __contains__(self, key: str) -> bool:
        return key in self._links

    def link(self, key: str, path: Path, directory: Path | None = None) -> None:
        """Gives the object at `path` its second name: in the directory of this process, where one is named,
        else among those that the dead left. An object that is gone has nothing to announce.

        Raises:
            OSError
        """
        name = hashlib.sha256(key.encode()).hexdigest()[:32] + _SUFFIX
        link = (directory or self._directory) / name
        with suppress(FileNotFoundError):
            link.unlink(missing_ok=True)
            os.link(path, link)
            if directory is not None:
                self.add(key, link)

    def sync(self) -> None:
        """What was adopted is durable on return."""
        sync_directory(self._directory)

    @staticmethod
    def mark(staged: Path) -> Path:
        """Renames an unfinished file whose commit will be pending: a name that is left behind says so. It is
        one that no other process gives, since those of all of them come to lie in one directory.
        """
        return staged.rename(staged.with_name(secrets.token_hex(16) + _SUFFIX))

    @staticmethod
    def marked(staged: Path) -> bool:
        return staged.name.endswith(_SUFFIX)

    def adopt(self, link: Path) -> None:
        """Keeps the link of a process that is gone, or is about to go, if its commit was pending. A process
        can also die between linking a file and dropping its first name: that one owes nothing. A name that is
        taken is one made of the key, and says the same.

        Raises:
            OSError
        """
        if link.name.endswith(_SUFFIX) and not (self._directory / link.name).exists():
            link.rename(self._directory / link.name)

    def left(self) -> Iterator[Path]:
        yield from sorted(self._directory.iterdir())
