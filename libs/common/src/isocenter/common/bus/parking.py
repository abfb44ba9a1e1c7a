"""Which studies have events waiting on the retry topic.

An event that waits there must not be overtaken by a later event of the same study. So the later ones queue
up behind it, for as long as the set of waiting events of that study is not empty. It is a set, not a flag:
a flag cleared by the first success would let the next event overtake the second one that waits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Protocol

Submit = Callable[[Callable[[sqlite3.Connection], None]], Awaitable[None]]


class Place(Enum):
    """Where an event stands among the waiting ones of its key."""

    FREE = "free"
    """Nothing of the key waits."""
    BEHIND = "behind"
    """Others wait: it must join them."""
    WAITING = "waiting"
    """It is itself in the set: whoever put it there died before the copy was acknowledged."""


class Parking(Protocol):
    """Sets of waiting events per group and record key. Writes are durable when they return.

    Raises:
        BusUnavailable: the set could not be read or written; nothing changed.
    """

    async def prepare(self) -> None:
        """Called before the first delivery. Idempotent."""
        ...

    async def place(self, group: str, key: bytes, ident: str) -> Place:
        """Asked once per record: its cost must not grow with the number of those that wait."""
        ...

    async def add(self, group: str, key: bytes, ident: str) -> None:
        """Idempotent."""
        ...

    async def discard(self, group: str, key: bytes, ident: str) -> None:
        """Idempotent."""
        ...

    async def studies(self, group: str) -> int:
        """How many keys have waiting events."""
        ...

    async def entries(self, group: str) -> list[tuple[bytes, str]]:
        """Waiting events of the group, to find those that nothing waits for any more."""
        ...

    async def close(self) -> None: ...


class MemoryParking:
    """Forgets everything with the process: for tests. Order then holds only until a restart."""

    def __init__(self, rows: Iterable[tuple[str, bytes, str]] = ()) -> None:
        self._waiting: dict[tuple[str, bytes], set[str]] = {}
        for group, key, ident in rows:
            self._waiting.setdefault((group, key), set()).add(ident)

    async def prepare(self) -> None: ...

    async def place(self, group: str, key: bytes, ident: str) -> Place:
        waiting = self._waiting.get((group, key))
        if not waiting:
            return Place.FREE
        return Place.WAITING if ident in waiting else Place.BEHIND

    async def add(self, group: str, key: bytes, ident: str) -> None:
        self._waiting.setdefault((group, key), set()).add(ident)

    async def discard(self, group: str, key: bytes, ident: str) -> None:
        waiting = self._waiting.get((group, key))
        if waiting is not None:
            waiting.discard(ident)
            if not waiting:
                del self._waiting[group, key]

    async def studies(self, group: str) -> int:
        return sum(owner == group for owner, _ in self._waiting)

    async def entries(self, group: str) -> list[tuple[bytes, str]]:
        return [
            (key, ident)
            for (owner, key), waiting in self._waiting.items()
            if owner == group
            for ident in sorted(waiting)
        ]

    async def close(self) -> None: ...


class SqliteParking:
    """The sets in a table of the embedded log's file, so that one transaction order covers both.

    The log has one owner, so the copy in memory is exact and `place` costs no read.
    """

    def __init__(self, rows: list[tuple[str, bytes, str]], submit: Submit) -> None:
        self._submit = submit
        self._memory = MemoryParking(rows)

    async def prepare(self) -> None: ...

    async def place(self, group: str, key: bytes, ident: str) -> Place:
        return await self._memory.place(group, key, ident)

    async def add(self, group: str, key: bytes, ident: str) -> None:
        if await self._memory.place(group, key, ident) is not Place.WAITING:
            row = (group, key, ident)
            await self._submit(
                lambda c: _ignore(c.execute("INSERT OR IGNORE INTO parked VALUES(?,?,?)", row))
            )
            await self._memory.add(group, key, ident)

    async def discard(self, group: str, key: bytes, ident: str) -> None:
        if await self._memory.place(group, key, ident) is Place.WAITING:
            row = (group, key, ident)
            delete = "DELETE FROM parked WHERE grp=? AND key=? AND ident=?"
            await self._submit(lambda c: _ignore(c.execute(delete, row)))
            await self._memory.discard(group, key, ident)

    async def studies(self, group: str) -> int:
        return await self._memory.studies(group)

    async def entries(self, group: str) -> list[tuple[bytes, str]]:
        return await self._memory.entries(group)

    async def close(self) -> None: ...


def _ignore(_cursor: sqlite3.Cursor) -> None:
    return None
