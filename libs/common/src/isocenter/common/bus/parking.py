"""Which studies have events waiting on the retry topic.

An event that waits there must not be overtaken by a later event of the same study. So the later ones queue
up behind it, for as long as the set of waiting events of that study is not empty. It is a set, not a flag:
a flag cleared by the first success would let the next event overtake the second one that waits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")
Submit = Callable[[Callable[[sqlite3.Connection], None]], Awaitable[None]]


class Parking(Protocol):
    """Sets of waiting events per group and record key. Writes are durable when they return.

    Raises:
        BusUnavailable: the set could not be written; nothing changed.
    """

    async def waiting(self, group: str, key: bytes) -> frozenset[str]: ...

    async def add(self, group: str, key: bytes, ident: str) -> None:
        """Idempotent."""
        ...

    async def discard(self, group: str, key: bytes, ident: str) -> None:
        """Idempotent."""
        ...

    async def entries(self, group: str) -> list[tuple[bytes, str]]:
        """Every waiting event of the group, to find those that nothing waits for any more."""
        ...


class MemoryParking:
    """Forgets everything with the process: for tests. Order then holds only until a restart."""

    def __init__(self, rows: Iterable[tuple[str, bytes, str]] = ()) -> None:
        self._waiting: dict[tuple[str, bytes], set[str]] = {}
        for group, key, ident in rows:
            self._waiting.setdefault((group, key), set()).add(ident)

    async def waiting(self, group: str, key: bytes) -> frozenset[str]:
        return frozenset(self._waiting.get((group, key), ()))

    async def add(self, group: str, key: bytes, ident: str) -> None:
        self._waiting.setdefault((group, key), set()).add(ident)

    async def discard(self, group: str, key: bytes, ident: str) -> None:
        waiting = self._waiting.get((group, key))
        if waiting is not None:
            waiting.discard(ident)
            if not waiting:
                del self._waiting[group, key]

    async def entries(self, group: str) -> list[tuple[bytes, str]]:
        return [
            (key, ident)
            for (owner, key), waiting in self._waiting.items()
            if owner == group
            for ident in sorted(waiting)
        ]


class SqliteParking:
    """The sets in a table of the embedded log's file, so that one transaction order covers both.

    The log has one owner, so the copy in memory is exact and `waiting` costs no read.
    """

    def __init__(self, rows: list[tuple[str, bytes, str]], submit: Submit) -> None:
        self._submit = submit
        self._memory = MemoryParking(rows)

    async def waiting(self, group: str, key: bytes) -> frozenset[str]:
        return await self._memory.waiting(group, key)

    async def add(self, group: str, key: bytes, ident: str) -> None:
        if ident not in await self._memory.waiting(group, key):
            row = (group, key, ident)
            await self._submit(
                lambda c: _ignore(c.execute("INSERT OR IGNORE INTO parked VALUES(?,?,?)", row))
            )
            await self._memory.add(group, key, ident)

    async def discard(self, group: str, key: bytes, ident: str) -> None:
        if ident in await self._memory.waiting(group, key):
            row = (group, key, ident)
            delete = "DELETE FROM parked WHERE grp=? AND key=? AND ident=?"
            await self._submit(lambda c: _ignore(c.execute(delete, row)))
            await self._memory.discard(group, key, ident)

    async def entries(self, group: str) -> list[tuple[bytes, str]]:
        return await self._memory.entries(group)


def _ignore(_cursor: sqlite3.Cursor) -> None:
    return None
