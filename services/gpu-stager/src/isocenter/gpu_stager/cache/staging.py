"""The cache of a node: one copy of each series, made once however many ask, and leased while it is used."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isocenter.common.errors import (
    IntegrityError,
    IsocenterError,
    Permanent,
    StoreUnavailable,
    Transient,
)
from isocenter.gpu_stager.cache.directory import Directory, Head
from isocenter.gpu_stager.cache.disks import Disks, Told
from isocenter.gpu_stager.cache.ledger import CacheFull, Ledger
from isocenter.gpu_stager.cache.rows import Limits, Pin, Priority, Row
from isocenter.gpu_stager.cache.states import State, Stimulus
from isocenter.gpu_stager.cache.waiting import WAITING, Queue, Ticket, finished
from isocenter.gpu_stager.manifest import Entry

RETRY_SECONDS: Final = (1.0, 60.0)
"""After the first failure, and at most; doubled each time."""
PERMANENT_SECONDS: Final = 600.0
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
    look: bool = False
    """Of whoever checks the entry: no use of it."""


class Failed(Permanent):
    """Staging it failed a short while ago, and is not tried again yet."""

    code = "staging-failed"


class Withdrawn(Transient):
    """While it was made, its study or series was dropped, or the service stopped. Whoever asks again is told
    what there is now.
    """

    code = "staging-withdrawn"


class Making:
    """A `Progress`: tells the ledger how far an entry is."""

    def __init__(self, ledger: Ledger, name: str, resize: Callable[[int], None]) -> None:
        self._ledger = ledger
        self._name = name
        self._resize = resize

    def fetching(self) -> None:
        self._ledger.move(self._name, Stimulus.FETCH)

    def decoding(self) -> None:
        self._ledger.move(self._name, Stimulus.DECODE)

    def writing(self) -> None:
        self._ledger.move(self._name, Stimulus.WRITE)

    def size(self, size_bytes: int) -> None:
        """It takes more or less than was thought. Raises TooLarge, CacheFull."""
        self._resize(size_bytes)


Build = Callable[[Path, Making], Awaitable[Entry]]


@dataclass(slots=True, eq=False)
class _Flight:
    """A build in the air, and how many wait for it."""

    wanted: Wanted
    ticket: Ticket
    forced: bool
    task: asyncio.Task[Path] = field(init=False)
    waiting: int = 0
    ending: bool = False
    """It was cancelled: nobody boards any more."""


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
        self._told = told or (lambda kind, row, reason: None)
        self._disks = Disks(directories, self.ledger, self._told)
        self.now = monotonic
        self._flights: dict[str, _Flight] = {}
        self._queue = Queue()

    @property
    def broken(self) -> dict[int, str]:
        """Disks left out, and why."""
        return self._disks.broken

    async def start(self) -> None:
        """Finds what is there. Raises StoreUnavailable: no disk can be used."""
        for number, directory in self._disks.working:
            try:
                heads = await asyncio.to_thread(directory.open)
                for head in heads:
                    if head.name in self.ledger.rows:  # the other disk was out of use for a while
                        await asyncio.to_thread(directory.evict, head.name)
                    else:
                        self.ledger.found(_row(head, number), self.now())
                await asyncio.to_thread(directory.empty_trash)
            except StoreUnavailable as error:
                self._disks.lose(number, error)
        if not self._disks.working:
            raise StoreUnavailable("no disk for staged volumes can be used: " + self.broken[0])

    async def stop(self) -> None:
        """Builds in the air are given up, and what they wrote goes."""
        for flight in self._flights.values():
            _end(flight)
        await asyncio.gather(*(flight.task for flight in self._flights.values()), return_exceptions=True)
        await self._disks.stop()

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
            Withdrawn: it was dropped meanwhile.
            TooLarge, Overloaded, and what the build raises.
        """
        started = self.now()
        while (flight := self._flights.get(wanted.name)) is not None and flight.ending:
            await asyncio.wait({flight.task})
        row = self.ledger.rows.get(wanted.name)
        if row is not None and row.available:
            self.ledger.wanted(row, priority)
            self.ledger.hits += 1
            self._raise_pin(row, pin)
            row.last_used = started
            return Staged(row.name, self._disks.of(row).path(row.name), hit=True, seconds=0.0)
        if flight is None:
            if row is not None and row.state is State.FAILED and row.retry_at > started:
                raise Failed("staging failed a short while ago", entry=wanted.name)
            flight = self._take_off(wanted, build, priority, forced=forced)
        else:
            self._queue.hurry(flight.ticket, priority)
            if row is not None and row.making:
                self.ledger.wanted(row, priority)
        flight.waiting += 1
        try:
            await asyncio.wait({flight.task})
        except asyncio.CancelledError:
            if flight.waiting == 1 and not flight.task.done():
                _end(flight)
                await asyncio.wait({flight.task})
            raise
        finally:
            flight.waiting -= 1
        if flight.task.cancelled():
            raise Withdrawn("given up while it was made", entry=wanted.name)
        path = flight.task.result()
        if (row := self.ledger.rows.get(wanted.name)) is not None:
            self._raise_pin(row, pin)
        return Staged(wanted.name, path, hit=False, seconds=self.now() - started)

    def _take_off(self, wanted: Wanted, build: Build, priority: Priority, *, forced: bool) -> _Flight:
        flight = _Flight(wanted, Ticket(priority), forced)

        def landed(task: asyncio.Task[Path]) -> None:
            del self._flights[wanted.name]
            if not task.cancelled():
                task.exception()  # all who waited may have left

        flight.task = asyncio.create_task(self._make(flight, build))
        flight.task.add_done_callback(landed)
        self._flights[wanted.name] = flight
        return flight

    def _raise_pin(self, row: Row, pin: Pin) -> None:
        """A request may pin harder than another did, never softer."""
        if pin is Pin.HARD or (pin is Pin.SOFT and row.pin is not Pin.HARD):
            self.ledger.pin(row.name, pin, self.now())

    async def _make(self, flight: _Flight, build: Build) -> Path:
        """On one disk; on the next where that one turns out to be broken."""
        self.ledger.misses += 1
        name = flight.wanted.name
        while True:
            disk, chosen = await self._reserved(flight)
            try:
                await self._disks.discard(chosen, "space")
                path = await self._written(flight, build, disk)
                break
            except BaseException as error:
                row = self._failed(name, error)
                lost = isinstance(error, StoreUnavailable) and not await self._disks.serves(disk, error)
                if lost and not flight.ending:
                    continue
                if row is not None:
                    self._told("failed", row, error.code if isinstance(error, IsocenterError) else "internal")
                raise
        row = self.ledger.move(name, Stimulus.COMMIT)
        row.last_used = row.verified = self.now()
        if row.dropped:
            self.ledger.evict(name, self.now())
            await self._disks.discard([name], row.dropped)
            raise Withdrawn("dropped while it was made", entry=name)
        self._told("ready", row, "")
        return path

    async def _written(self, flight: _Flight, build: Build, disk: int) -> Path:
        name, directory = flight.wanted.name, self._disks.directories[disk]
        part, cancelled = await finished(directory.begin)
        try:
            if cancelled:
                raise asyncio.CancelledError  # noqa: TRY301 - the folder must go
            making = Making(self.ledger, name, lambda size: self._resize(flight, size))
            entry = await build(part, making)
            _check(flight.wanted, entry)
            if entry.size_bytes != self.ledger.rows[name].bytes:
                self._resize(flight, entry.size_bytes)
            self.ledger.move(name, Stimulus.VERIFY)
            # Whoever leaves now leaves a whole entry behind: it stays.
            path, _ = await finished(directory.commit, part, entry)
        except BaseException:
            await finished(directory.abandon, part)
            raise
        return path

    def _resize(self, flight: _Flight, size: int) -> None:
        chosen = self.ledger.resize(flight.wanted.name, size, self.now(), forced=flight.forced)
        self._disks.discard_later(chosen, "space")

    def _failed(self, name: str, error: BaseException) -> Row | None:
        """None: nobody waits for it any more, and it may be tried at once."""
        wait = min(RETRY_SECONDS[0] * 2 ** min(self.ledger.rows[name].failures, 16), RETRY_SECONDS[1])
        if isinstance(error, Permanent):
            wait = PERMANENT_SECONDS
        row = self.ledger.failed(name, self.now() + wait)
        if isinstance(error, asyncio.CancelledError):
            self.ledger.forget(name)
            return None
        return row

    async def _reserved(self, flight: _Flight) -> tuple[int, list[str]]:
        """Waits for room, by priority. The disk that it is charged to, and what must go for it.

        Raises TooLarge, Overloaded, StoreUnavailable.
        """
        started, wanted = self.now(), flight.wanted
        with self._queue.place(flight.ticket):
            while True:
                if self._queue.first(flight.ticket):
                    disk, floor = await self._disks.place(wanted.size_bytes)
                    now, priority = self.now(), flight.ticket.priority
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
                        return disk, self.ledger.reserve(row, now, floor=floor, forced=flight.forced)
                    except CacheFull:
                        if not priority.demanded or now - started > PATIENCE_SECONDS:  # a guess does not wait
                            raise
                await asyncio.sleep(ROOM_SECONDS)

    def lease(self, name: str, *, look: bool = False) -> Lease | None:
        """None: it is not there.

        Args:
            name: the entry.
            look: for whoever checks it: it counts as no use, or what nobody asks for would never go.
        """
        lease = secrets.token_hex(16)
        row = self.ledger.use(name, lease, self.now(), look=look)
        if row is None:
            return None
        return Lease(lease, name, self._disks.of(row).path(name), look)

    def renew(self, lease: Lease) -> bool:
        return self.ledger.renew(lease.name, lease.id, self.now())

    def release(self, lease: Lease) -> None:
        self.ledger.release(lease.name, lease.id, self.now(), look=lease.look)

    def pin(self, name: str, pin: Pin) -> bool:
        return self.ledger.pin(name, pin, self.now())

    def find(self, *, study_key: str | None = None, series_key: str | None = None) -> list[Row]:
        """Ready entries, newest use first."""
        rows = [
            row
            for row in self.ledger.rows.values()
            if row.available and study_key in {None, row.study_key} and series_key in {None, row.series_key}
        ]
        return sorted(rows, key=lambda row: -row.last_used)

    async def entry(self, name: str) -> Entry:
        """Raises IntegrityError: it is not there, or its manifest is gone or none."""
        row = self.ledger.rows.get(name)
        if row is None:
            raise IntegrityError("not staged", entry=name)
        return await asyncio.to_thread(self._disks.of(row).manifest, name)

    async def drop(
        self,
        *,
        study_key: str | None = None,
        series_key: str | None = None,
        keep: str = "",
        reason: str = "",
    ) -> None:
        """Everything of a study or series goes, pinned, damaged or in the making; what is leased, when its
        lease ends.

        Args:
            study_key: of the study that goes.
            series_key: of the series, where not all of it goes.
            keep: an entry that takes the place of the others.
            reason: of the eviction, one of `EvictionReason`.

        Raises:
            StoreUnavailable: what is in quarantine could not be deleted.
        """
        reason = reason or ("superseded" if keep else "dropped")

        def meant(one: Row | Wanted) -> bool:
            same = study_key in {None, one.study_key} and series_key in {None, one.series_key}
            return same and one.name != keep

        self.ledger.drop([row.name for row in self.ledger.rows.values() if meant(row)], reason)
        flights = [flight for flight in self._flights.values() if meant(flight.wanted)]
        for flight in flights:
            _end(flight)
        if flights:
            await asyncio.wait({flight.task for flight in flights})
        await self.reap()
        if keep:
            return
        for _, directory in self._disks.working:
            await asyncio.to_thread(directory.forget_damaged, study_key=study_key, series_key=series_key)

    async def evict(self, name: str) -> bool:
        """By hand. False: it is not there, or somebody holds it."""
        if not self.ledger.evict(name, self.now()):
            return False
        await self._disks.discard([name], "manual")
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
        await self._disks.discard([name], "damaged", keep=not row.dropped)

    async def reap(self) -> None:
        """To be called now and then: leases that ran out, marks, free space, what failed long ago."""
        now = self.now()
        self.ledger.expire(now)
        for row in [row for row in self.ledger.rows.values() if row.state is State.FAILED]:
            if row.retry_at + PERMANENT_SECONDS < now:
                self.ledger.forget(row.name)
        await self._disks.tidy()
        space = await self._disks.space()
        short = {number: floor - free for number, (free, floor) in space.items()}
        await self._disks.discard(self.ledger.surplus(self.now(), short), "space")

    def to_verify(self) -> Row | None:
        """The ready entry that was verified longest ago."""
        return min(
            (row for row in self.ledger.rows.values() if row.available),
            key=lambda row: row.verified,
            default=None,
        )

    @property
    def pressed(self) -> bool:
        """What is in the making exceeds the high mark: take no more work for now."""
        limits = self.ledger.limits
        return self.ledger.making > limits.high * limits.quota_bytes or len(self._queue) >= WAITING // 2


def _end(flight: _Flight) -> None:
    if not flight.task.done():
        flight.ending = True
        flight.task.cancel()


def _check(wanted: Wanted, entry: Entry) -> None:
    """Raises IntegrityError."""
    made = (entry.name, entry.study_key, entry.series_key)
    if made != (wanted.name, wanted.study_key, wanted.series_key):
        raise IntegrityError("another entry was built than was asked for", entry=wanted.name)


def _row(head: Head, disk: int) -> Row:
    return Row(
        head.name, head.study_key, head.series_key, head.modality, head.size_bytes, Priority.INFERENCE, disk
    )
