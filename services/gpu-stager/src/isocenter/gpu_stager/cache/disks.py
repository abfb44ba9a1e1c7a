"""The disks of a node: which one an entry goes to, what leaves them, and which of them are out of use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from isocenter.common.errors import StoreFull, StoreUnavailable
from isocenter.gpu_stager.cache.directory import CacheBroken, Directory
from isocenter.gpu_stager.cache.ledger import Ledger
from isocenter.gpu_stager.cache.rows import Row
from isocenter.gpu_stager.cache.states import State, Stimulus

Told = Callable[[str, Row, str], None]
"""Called with `ready`, `evicted` or `failed`, the entry's row and a reason."""


class Disks:
    """Entries are whole on one disk. A disk that fails is left out, and the others go on."""

    def __init__(self, directories: Sequence[Directory], ledger: Ledger, told: Told) -> None:
        self.directories = list(directories)
        self.broken: dict[int, str] = {}
        self._ledger = ledger
        self._told = told
        self._chores: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()

    @property
    def working(self) -> list[tuple[int, Directory]]:
        return [item for item in enumerate(self.directories) if item[0] not in self.broken]

    def of(self, row: Row) -> Directory:
        return self.directories[row.disk]

    async def place(self, size: int) -> tuple[int, int]:
        """The one place that chooses a disk: that with most room after what is promised on it. Also how many
        bytes it lacks of its free-space floor with this entry.

        Raises:
            StoreUnavailable: no disk can be used.
        """
        best: tuple[int, int] | None = None
        for number, (free, floor) in (await self.space()).items():
            rows = self._ledger.rows.values()
            promised = sum(row.bytes for row in rows if row.making and row.disk == number)
            room = free - promised - size - floor
            if best is None or room > best[0]:
                best = (room, number)
        if best is None:
            raise StoreUnavailable("no disk for staged volumes can be used")
        return best[1], max(0, -best[0])

    async def space(self) -> dict[int, tuple[int, int]]:
        """Disk -> bytes that are free, and bytes that should be."""
        found = {}
        for number, directory in self.working:
            try:
                free, total = await asyncio.to_thread(directory.space)
            except StoreUnavailable as error:
                self.lose(number, error)
            else:
                found[number] = (free, int(self._ledger.limits.min_free * total))
        return found

    async def serves(self, disk: int, error: StoreUnavailable) -> bool:
        """Whether a disk can still be used after an error that may be its, or the object store's."""
        if isinstance(error, CacheBroken):
            self.lose(disk, error)
        elif disk not in self.broken and not isinstance(error, StoreFull):
            try:
                await asyncio.to_thread(self.directories[disk].check)
            except StoreFull:
                return True
            except StoreUnavailable as found:
                self.lose(disk, found)
        return disk not in self.broken

    def lose(self, disk: int, error: StoreUnavailable) -> None:
        """Its entries are made anew elsewhere when they are asked for."""
        if disk in self.broken:
            return
        self.broken[disk] = error.message
        for row in self._ledger.lost(disk):
            self._told("evicted", row, row.dropped or "unknown")

    async def discard(self, names: Sequence[str], reason: str, *, keep: bool = False) -> None:
        """Deletes what the ledger is evicting, also where the caller is cancelled meanwhile.

        Args:
            names: of the entries.
            reason: of those that nobody dropped.
            keep: in quarantine.
        """
        if names:
            await asyncio.shield(self.begin(self._throw_out(names, reason, keep=keep)))

    def discard_later(self, names: Sequence[str], reason: str) -> None:
        if names:
            self.begin(self._throw_out(names, reason, keep=False))

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        return task

    async def stop(self) -> None:
        await asyncio.gather(*self._chores, return_exceptions=True)

    async def tidy(self) -> None:
        """Deletes again what could not be deleted."""
        for _, directory in self.working:
            await asyncio.to_thread(directory.empty_trash)
        stuck = [
            row.name
            for row in self._ledger.rows.values()
            if row.state is State.EVICTING and row.name not in self._leaving
        ]
        await self.discard(stuck, "space")

    async def _throw_out(self, names: Sequence[str], reason: str, *, keep: bool) -> None:
        """What cannot be deleted stays charged; on a broken disk it counts as gone."""
        rows = [self._ledger.rows[name] for name in names]
        self._leaving.update(names)
        try:
            for row in rows:
                try:
                    await asyncio.to_thread(_delete, self.of(row), row.name, keep=keep)
                except StoreUnavailable as error:
                    if await self.serves(row.disk, error):
                        continue
                self._ledger.move(row.name, Stimulus.GONE)
        finally:
            self._leaving.difference_update(names)
        for row in rows:
            if row.state is State.ABSENT:
                self._told("evicted", row, row.dropped or reason)


def _delete(directory: Directory, name: str, *, keep: bool) -> None:
    """Raises StoreFull, StoreUnavailable, CacheBroken."""
    if keep:
        try:
            directory.quarantine(name)
        except StoreUnavailable:
            directory.evict(name)
    else:
        directory.evict(name)
    directory.empty_trash()
