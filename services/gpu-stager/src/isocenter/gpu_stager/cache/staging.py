"""The cache of a node: one copy of each series, made once however many ask, and leased while it is used."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isocenter.common.errors import IsocenterError, Overloaded, Permanent, StoreUnavailable
from isocenter.gpu_stager.cache.directory import Directory, Head
from isocenter.gpu_stager.cache.ledger import CacheFull, Ledger, Limits, Pin, Priority, Row
from isocenter.gpu_stager.cache.states import State, Stimulus
from isocenter.gpu_stager.manifest import Entry

RETRY_SECONDS: Final = (1.0, 60.0)
"""After the first failure, and at most; doubled each time."""
PERMANENT_SECONDS: Final = 600.0
WAITING: Final = 1000
"""Requests that wait for room; more are refused."""
ROOM_SECONDS: Final = 0.25
"""Between two looks for room."""
PATIENCE_SECONDS: Final = 300.0
"""How long a request waits for room."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be staged, known before anything is fetched."""

    name: str
    study_key: str
    series_key: str
    modality: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Staged:
    """A ready entry. `hit`: it was there already."""

    name: str
    path: Path
    hit: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use an entry: until it runs out it is not evicted."""

    id: str
    name: str
    path: Path


class Failed(Permanent):
    """Staging it failed a short while ago, and is not tried again yet."""

    code = "staging-failed"


class Making:
    """A `Progress`: tells the ledger how far an entry is."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name

    def fetching(self) -> None:
        self._ledger.move(self._name, Stimulus.FETCH)

    def decoding(self) -> None:
        self._ledger.move(self._name, Stimulus.DECODE)

    def writing(self) -> None:
        self._ledger.move(self._name, Stimulus.WRITE)


Build = Callable[[Path, Making], Awaitable[Entry]]
Told = Callable[[str, Row, str], None]
"""Called with `ready`, `evicted` or `failed`, the entry's row and a reason."""


@dataclass(slots=True)
class _Flight:
    """A build in the air, and how many wait for it."""

    task: asyncio.Task[Path]
    waiting: int = 0


@dataclass(slots=True)
class _Queue:
    """Requests that wait for room, the most urgent first, then the oldest."""

    waiting: list[tuple[Priority, int]] = field(default_factory=list)
    count: int = 0

    @asynccontextmanager
    async def ticket(self, priority: Priority) -> AsyncIterator[tuple[Priority, int]]:
        if len(self.waiting) >= WAITING:
            raise Overloaded("too many requests wait for room in the cache")
        self.count += 1
        ticket = (priority, self.count)
        self.waiting.append(ticket)
        try:
            yield ticket
        finally:
            self.waiting.remove(ticket)

    def first(self, ticket: tuple[Priority, int]) -> bool:
        return ticket == min(self.waiting)


class Cache:
    """Entries over one or several disks.

    Args:
        directories: at least one; a disk that fails is left out, and staging goes on with the others.
        limits: over all of them.
        told: hears what became ready, failed or was evicted.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        directories: Sequence[Directory],
        limits: Limits,
        *,
        told: Told | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = Ledger(limits)
        self.broken: dict[int, str] = {}
        """Disks left out, and why."""
        self._directories = list(directories)
        self._told = told or (lambda kind, row, reason: None)
        self.now = monotonic
        self._flights: dict[str, _Flight] = {}
        self._queue = _Queue()

    async def start(self) -> None:
        """Finds what is there. Raises StoreUnavailable: no disk can be used."""
        for number, directory in enumerate(self._directories):
            try:
                heads = await asyncio.to_thread(directory.open)
            except StoreUnavailable as error:
                self.broken[number] = error.message
                continue
            for head in heads:
                if head.name not in self.ledger.rows:
                    self.ledger.found(_row(head, number), self.now())
        if len(self.broken) == len(self._directories):
            raise StoreUnavailable("no disk for staged volumes can be used: " + self.broken[0])
        await self.reap()

    async def stop(self) -> None:
        """Builds in the air are given up; what they wrote goes at the next start, or now."""
        flights = [flight.task for flight in self._flights.values()]
        for task in flights:
            task.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def stage(
        self,
        wanted: Wanted,
        build: Build,
        *,
        priority: Priority = Priority.INFERENCE,
        pin: Pin = Pin.NONE,
        forced: bool = False,
    ) -> Staged:
        """Returns when the entry is ready. However many ask, it is made once; each hears the same error.

        A caller that is cancelled leaves the others what they wait for; the last one that leaves ends it.

        Raises:
            Failed: it failed a short while ago.
            TooLarge, Overloaded, and what the build raises.
        """
        started = self.now()
        row = self.ledger.rows.get(wanted.name)
        if row is not None and row.state is State.READY and not row.dropped:
            if pin is not Pin.NONE:
                self.ledger.pin(row.name, pin, started)
            if priority.demanded and not row.priority.demanded:
                row.priority = priority
                self.ledger.prefetch_used += 1
            row.last_used = started
            return Staged(row.name, self._directories[row.disk].path(row.name), hit=True, seconds=0.0)
        flight = self._flights.get(wanted.name)
        if flight is None:
            if row is not None and row.state is State.FAILED and row.retry_at > started:
                raise Failed("staging failed a short while ago", entry=wanted.name)
            task = asyncio.create_task(self._make(wanted, build, priority, forced=forced))
            flight = self._flights[wanted.name] = _Flight(task)
            task.add_done_callback(lambda _: self._flights.pop(wanted.name, None))
        flight.waiting += 1
        try:
            path = await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.waiting == 1 and not flight.task.done():
                flight.task.cancel()
                with suppress(asyncio.CancelledError, IsocenterError):
                    await flight.task
            raise
        finally:
            flight.waiting -= 1
        if pin is not Pin.NONE:
            self.ledger.pin(wanted.name, pin, self.now())
        return Staged(wanted.name, path, hit=False, seconds=self.now() - started)

    async def _make(self, wanted: Wanted, build: Build, priority: Priority, *, forced: bool) -> Path:
        self.ledger.misses += 1
        disk = await self._reserved(wanted, priority, forced=forced)
        directory = self._directories[disk]
        part: Path | None = None
        try:
            part = await asyncio.to_thread(directory.begin)
            entry = await build(part, Making(self.ledger, wanted.name))
            path = await asyncio.to_thread(directory.commit, part, entry)
        except BaseException as error:
            if part is not None:
                await asyncio.shield(asyncio.to_thread(directory.abandon, part))
            self._fail(wanted.name, error, disk)
            raise
        row = self.ledger.move(wanted.name, Stimulus.COMMIT)
        row.last_used = row.verified = self.now()
        self._told("ready", row, "")
        return path

    async def _reserved(self, wanted: Wanted, priority: Priority, *, forced: bool) -> int:
        """Waits for room, by priority. The disk that it is charged to. Raises TooLarge, Overloaded."""
        started = self.now()
        async with self._queue.ticket(priority) as ticket:
            while True:
                if self._queue.first(ticket):
                    disk, floor = await self._place(wanted.size_bytes)
                    now = self.now()
                    row = Row(
                        wanted.name,
                        wanted.study_key,
                        wanted.series_key,
                        wanted.modality,
                        wanted.size_bytes,
                        priority,
                        disk,
                    )
                    try:
                        chosen = self.ledger.reserve(row, now, floor=floor, forced=forced)
                    except CacheFull:
                        if not priority.demanded or now - started > PATIENCE_SECONDS:  # a guess does not wait
                            raise
                    else:
                        await self._discard(chosen, "space")
                        return disk
                await asyncio.sleep(ROOM_SECONDS)

    async def _place(self, size: int) -> tuple[int, int]:
        """The one place that chooses a disk: that with most room after what is promised on it. Also how many
        bytes it lacks of its free-space floor with this entry.

        Raises:
            StoreUnavailable: no disk can be used.
        """
        best: tuple[int, int, int] | None = None
        for number, directory in enumerate(self._directories):
            if number in self.broken:
                continue
            try:
                free, total = await asyncio.to_thread(directory.space)
            except StoreUnavailable as error:
                self.broken[number] = error.message
                continue
            promised = sum(
                row.bytes for row in self.ledger.rows.values() if row.making and row.disk == number
            )
            room = free - promised - size - int(self.ledger.limits.min_free * total)
            if best is None or room > best[0]:
                best = (room, number, max(0, -room))
        if best is None:
            raise StoreUnavailable("no disk for staged volumes can be used")
        return best[1], best[2]

    def _fail(self, name: str, error: BaseException, disk: int) -> None:
        failures = self.ledger.rows[name].failures
        wait = min(RETRY_SECONDS[0] * 2**failures, RETRY_SECONDS[1])
        if isinstance(error, Permanent):
            wait = PERMANENT_SECONDS
        row = self.ledger.failed(name, self.now() + wait)
        if isinstance(error, asyncio.CancelledError):
            self.ledger.forget(name)
            return
        code = error.code if isinstance(error, IsocenterError) else "internal"
        self._told("failed", row, code)

    async def _discard(self, names: Sequence[str], reason: str) -> None:
        """Deletes what the ledger is evicting."""
        for name in names:
            row = self.ledger.rows[name]
            directory = self._directories[row.disk]
            try:
                await asyncio.to_thread(directory.evict, name)
            except StoreUnavailable as error:
                self.broken[row.disk] = error.message
            self.ledger.move(name, Stimulus.GONE)
            self._told("evicted", row, "dropped" if row.dropped else reason)
            await asyncio.to_thread(directory.empty_trash)

    def lease(self, name: str) -> Lease | None:
        """None: it is not there."""
        lease = secrets.token_hex(16)
        row = self.ledger.use(name, lease, self.now())
        if row is None:
            return None
        self.ledger.hits += 1
        return Lease(lease, name, self._directories[row.disk].path(name))

    def renew(self, lease: Lease) -> bool:
        return self.ledger.renew(lease.name, lease.id, self.now())

    def release(self, lease: Lease) -> None:
        self.ledger.release(lease.name, lease.id, self.now())

    def pin(self, name: str, pin: Pin) -> bool:
        return self.ledger.pin(name, pin, self.now())

    def find(self, *, study_key: str | None = None, series_key: str | None = None) -> list[Row]:
        """Ready entries, newest use first."""
        rows = [
            row
            for row in self.ledger.rows.values()
            if row.state is State.READY
            and not row.dropped
            and study_key in {None, row.study_key}
            and series_key in {None, row.series_key}
        ]
        return sorted(rows, key=lambda row: -row.last_used)

    async def entry(self, name: str) -> Entry:
        """Raises IntegrityError: its manifest is gone or none."""
        return await asyncio.to_thread(self._directories[self.ledger.rows[name].disk].manifest, name)

    async def drop(
        self, *, study_key: str | None = None, series_key: str | None = None, keep: str = ""
    ) -> None:
        """Everything of a study or series goes, pinned or not; what is leased, when its lease ends."""
        names = [
            row.name
            for row in self.ledger.rows.values()
            if study_key in {None, row.study_key}
            and series_key in {None, row.series_key}
            and row.name != keep
        ]
        self.ledger.drop(names)
        for name in names:
            if (flight := self._flights.get(name)) is not None:
                flight.task.cancel()
        await self.reap()

    async def evict(self, name: str) -> bool:
        """By hand. False: it is not there, or somebody holds it."""
        if not self.ledger.evict(name, self.now()):
            return False
        await self._discard([name], "manual")
        return True

    async def damaged(self, name: str) -> None:
        """Its bytes are not what was written: out of reach at once, whoever holds it. Asked for again it is
        made anew.
        """
        row = self.ledger.rows.get(name)
        if row is None or row.state is not State.READY:
            return
        row.leases.clear()
        self.ledger.move(name, Stimulus.EVICT)
        with suppress(StoreUnavailable):
            await asyncio.to_thread(self._directories[row.disk].quarantine, name)
        self.ledger.move(name, Stimulus.GONE)
        self._told("evicted", row, "damaged")

    async def reap(self) -> None:
        """To be called now and then: leases that ran out, marks, free space, what failed long ago."""
        now = self.now()
        self.ledger.expire(now)
        for row in [row for row in self.ledger.rows.values() if row.state is State.FAILED]:
            if row.retry_at + PERMANENT_SECONDS < now:
                self.ledger.forget(row.name)
        floors = {}
        for number, directory in enumerate(self._directories):
            if number in self.broken:
                continue
            with suppress(StoreUnavailable):
                free, total = await asyncio.to_thread(directory.space)
                floors[number] = int(self.ledger.limits.min_free * total) - free
        await self._discard(self.ledger.surplus(now, floors), "space")

    def to_verify(self) -> Row | None:
        """The ready entry that was verified longest ago."""
        ready = [row for row in self.ledger.rows.values() if row.state is State.READY and not row.dropped]
        return min(ready, key=lambda row: row.verified, default=None)

    @property
    def pressed(self) -> bool:
        """What is in the making exceeds the high mark: take no more work for now."""
        limits = self.ledger.limits
        return (
            self.ledger.making > limits.high * limits.quota_bytes or len(self._queue.waiting) >= WAITING // 2
        )


def _row(head: Head, disk: int) -> Row:
    return Row(
        head.name, head.study_key, head.series_key, head.modality, head.size_bytes, Priority.INFERENCE, disk
    )
