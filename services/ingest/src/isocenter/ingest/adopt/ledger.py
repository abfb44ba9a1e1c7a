"""What was done with each file of an archive, so that a second run need not read it again.

Only a shortcut: the store is what counts, and a file that is missing here is read and found to be there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

LEDGER_FILE: Final = "adopted.sqlite"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    root TEXT NOT NULL, path BLOB NOT NULL, tag TEXT NOT NULL, way TEXT NOT NULL, fate TEXT NOT NULL,
    reason TEXT NOT NULL, PRIMARY KEY (root, path)
) WITHOUT ROWID
"""


class Way(StrEnum):
    """What is to become of the files."""

    REFER = "refer"
    """The store refers to them; they stay."""
    COPY = "copy"
    """The store holds them, sealed; they stay."""
    MOVE = "move"
    """The store holds them, sealed; each is removed once that is durable."""


class Fate(StrEnum):
    TAKEN = "taken"
    """The instance is in the store, or referred to from it, since this file."""
    DUPLICATE = "duplicate"
    """The same instance, bit for bit, was there already."""
    SKIPPED = "skipped"
    """No DICOM instance."""
    REFUSED = "refused"
    """DICOM, and not as an archive can keep it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    path: str
    tag: str
    way: Way
    fate: Fate
    reason: str = ""

    def holds_for(self, way: Way) -> bool:
        """Whether a run of this way has nothing left to do."""
        if self.fate in {Fate.SKIPPED, Fate.REFUSED}:
            return True
        return self.way is way or (way is Way.REFER)


class Ledger:
    """One per data directory; used by one process."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / LEDGER_FILE)
        (folder / LEDGER_FILE).chmod(0o600)
        self._database.execute(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def find(self, root: str, path: str, tag: str) -> Entry | None:
        """None: not known, or known with another content."""
        row = self._database.execute(
            "SELECT tag, way, fate, reason FROM files WHERE root = ? AND path = ?", (root, _name(path))
        ).fetchone()
        if row is None or row[0] != tag:
            return None
        return Entry(path, tag, Way(row[1]), Fate(row[2]), row[3])

    def note(self, root: str, entries: Iterable[Entry]) -> None:
        with self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)",
                [(root, _name(e.path), e.tag, e.way.value, e.fate.value, e.reason) for e in entries],
            )


def _name(path: str) -> bytes:
    """File names need not be text."""
    return path.encode("utf-8", "surrogateescape")
