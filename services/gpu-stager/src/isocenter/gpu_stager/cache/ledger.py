"""Who is charged what, who may stay, who must go: pure decisions, no file and no clock.

Times are seconds of one clock that never goes back; `now` is always an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final

from isocenter.common.errors import Overloaded, Permanent
from isocenter.gpu_stager.cache.states import CHARGED, IN_THE_MAKING, State, Stimulus, after

PREFETCH_TRIAL: Final = 20
"""Prefetched entries that were used or dropped before their use is judged."""
PREFETCH_WORTH: Final = 0.2


class Priority(IntEnum):
    """Lower is sooner."""

    STAT = 0
    INFERENCE = 1
    PRIOR = 2
    BULK = 3

    @property
    def demanded(self) -> bool:
        """Somebody waits for it. The others are guesses: they never push out what was demanded."""
        return self <= Priority.INFERENCE


class Pin(StrEnum):
    NONE = "none"
    SOFT = "soft"
    """Goes last, and only until it runs out."""
    HARD = "hard"
    """Stays until it is taken off."""


class TooLarge(Permanent):
    """One entry would take more of the cache than any may."""

    code = "too-large"


class CacheFull(Overloaded):
    """What could go is not enough: leased, pinned, or in the making. Later there may be room."""

    code = "cache-full"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the cache of a node. Shares are of `quota_bytes`, but `min_free`, which is of the disk.

    Attributes:
        high, low: above the first, entries go until the second is reached.
        min_free: of each disk that stays free, whatever the quota says.
        largest: the most that one entry may take.
        prefetch: the most that entries nobody asked for may take together.
        grace_seconds: an entry stays so long after its last use.
        lease_seconds: what a lease lasts unless it is renewed.
        soft_pin_seconds: what a soft pin lasts.
    """

    quota_bytes: int
    high: float = 0.90
    low: float = 0.80
    min_free: float = 0.10
    largest: float = 0.25
    prefetch: float = 0.25
    grace_seconds: float = 60.0
    lease_seconds: float = 60.0
    soft_pin_seconds: float = 1800.0


@dataclass(slots=True)
class Row:
    """One entry as the ledger knows it."""

    name: str
    study_key: str
    series_key: str
    modality: str
    bytes: int
    priority: Priority
    disk: int
    state: State = State.ABSENT
    last_used: float = 0.0
    hits: int = 0
    leases: dict[str, float] = field(default_factory=dict)
    """Lease -> when it runs out."""
    pin: Pin = Pin.NONE
    pinned_until: float = 0.0
    dropped: bool = False
    """Goes as soon as nobody holds it, and nobody new gets it."""
    retry_at: float = 0.0
    failures: int = 0
    verified: float = 0.0

    def leased(self, now: float) -> bool:
        return any(until > now for until in self.leases.values())

    def pinned(self, now: float) -> Pin:
        if self.pin is Pin.SOFT and self.pinned_until <= now:
            return Pin.NONE
        return self.pin

    @property
    def making(self) -> bool:
        return self.state in IN_THE_MAKING


class Ledger:
    """All entries of a node, over all of its disks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rows: dict[str, Row] = {}
        self.hits = self.misses = 0
        self.prefetch_used = self.prefetch_dropped = 0

    @property
    def charged(self) -> int:
        """Bytes that are on disk or promised."""
        return sum(row.bytes for row in self.rows.values() if row.state in CHARGED)

    @property
    def making(self) -> int:
        """Bytes of entries that are not complete yet."""
        return sum(row.bytes for row in self.rows.values() if row.making)

    @property
    def prefetched(self) -> int:
        """Bytes of entries that nobody has asked for."""
        return sum(row.bytes for row in self.rows.values() if row.state in CHARGED and _is_guess(row))

    def move(self, name: str, stimulus: Stimulus) -> Row:
        """Raises Impossible."""
        row = self.rows[name]
        row.state = after(row.state, stimulus)
        if row.state is State.ABSENT:
            del self.rows[name]
        return row

    def found(self, row: Row, now: float) -> None:
        """An entry that a restart found whole."""
        self.rows[row.name] = row
        row.last_used = now
        self.move(row.name, Stimulus.FOUND)

    def reserve(self, row: Row, now: float, *, floor: int = 0, forced: bool = False) -> list[str]:
        """Charges a new entry; what is returned must be evicted for it, and is being evicted from now on.

        Args:
            row: of an entry that is absent or failed.
            now: the time.
            floor: bytes that the free space of its disk falls short of, with this entry on it.
            forced: it may take more than the largest share.

        Raises:
            TooLarge, CacheFull
        """
        limits = self.limits
        if row.bytes > limits.quota_bytes:
            raise TooLarge("larger than the whole cache", bytes=row.bytes)
        if row.bytes > limits.largest * limits.quota_bytes and not forced:
            raise TooLarge("larger than one entry may be", bytes=row.bytes)
        demanded = row.priority.demanded
        if not demanded and self.prefetched + row.bytes > limits.prefetch * limits.quota_bytes:
            raise CacheFull("prefetched entries have their share")
        missing = max(self.charged + row.bytes - limits.quota_bytes, 0)
        chosen = self._make_room(missing, floor, row.disk, now, demanded=demanded)
        old = self.rows.get(row.name)
        row.failures = old.failures if old is not None else 0
        row.state = old.state if old is not None else State.ABSENT
        self.rows[row.name] = row
        row.last_used = now
        self.move(row.name, Stimulus.RESERVE)
        for name in chosen:
            self._evict(name)
        return chosen

    def _make_room(self, missing: int, floor: int, disk: int, now: float, *, demanded: bool) -> list[str]:
        """Raises CacheFull. Bytes that are on their way out count as gone."""
        leaving = [row for row in self.rows.values() if row.state is State.EVICTING]
        missing -= sum(row.bytes for row in leaving)
        floor -= sum(row.bytes for row in leaving if row.disk == disk)
        chosen: list[str] = []
        for row in self._candidates(now):
            if missing <= 0 and floor <= 0:
                break
            if not demanded and not _is_guess(row):
                continue
            if missing <= 0 and row.disk != disk:
                continue
            chosen.append(row.name)
            missing -= row.bytes
            floor -= row.bytes if row.disk == disk else 0
        if missing > 0 or floor > 0:
            raise CacheFull("what is staged cannot make room now")
        return chosen

    def _candidates(self, now: float) -> Iterator[Row]:
        """What may go, the first first: guesses that ran out, then by age, soft pins last."""

        def order(row: Row) -> tuple[int, float]:
            expired = _is_guess(row) and row.pin is Pin.SOFT and row.pinned_until <= now
            soft = row.pinned(now) is Pin.SOFT
            return (0 if row.dropped else 1 if expired else 3 if soft else 2, row.last_used)

        free = [row for row in self.rows.values() if self._may_go(row, now)]
        return iter(sorted(free, key=order))

    def _may_go(self, row: Row, now: float) -> bool:
        if row.state is not State.READY or row.leased(now):
            return False
        if row.dropped:
            return True
        return row.pinned(now) is not Pin.HARD and now - row.last_used >= self.limits.grace_seconds

    def _evict(self, name: str) -> None:
        row = self.move(name, Stimulus.EVICT)
        if _is_guess(row):
            self.prefetch_dropped += 1

    def evict(self, name: str, now: float) -> bool:
        """By hand. False: it is not there, or somebody holds it."""
        row = self.rows.get(name)
        if row is None or row.state is not State.READY or row.leased(now):
            return False
        self._evict(name)
        return True

    def surplus(self, now: float, floors: dict[int, int]) -> list[str]:
        """What goes now: what was dropped, and above the high mark until the low one. Evicted from here on.

        Args:
            now: the time.
            floors: disk -> bytes that its free space falls short of.
        """
        chosen = [row.name for row in self._candidates(now) if row.dropped]
        for name in chosen:
            self._evict(name)
        staying = sum(
            row.bytes
            for row in self.rows.values()
            if row.state in CHARGED and row.state is not State.EVICTING
        )
        over = 0
        if staying > self.limits.high * self.limits.quota_bytes:
            over = staying - int(self.limits.low * self.limits.quota_bytes)
        short = dict(floors)
        for row in list(self._candidates(now)):
            if over <= 0 and short.get(row.disk, 0) <= 0:
                continue
            self._evict(row.name)
            chosen.append(row.name)
            over -= row.bytes
            short[row.disk] = short.get(row.disk, 0) - row.bytes
        return chosen

    def failed(self, name: str, retry_at: float) -> Row:
        row = self.move(name, Stimulus.FAIL)
        row.failures += 1
        row.retry_at = retry_at
        return row

    def forget(self, name: str) -> None:
        """A failed entry whose turn has come, or one that is gone."""
        self.move(name, Stimulus.GONE)

    def use(self, name: str, lease: str, now: float, seconds: float | None = None) -> Row | None:
        """Leases a ready entry. None: it is not there, or is on its way out."""
        row = self.rows.get(name)
        if row is None or row.state is not State.READY or row.dropped:
            return None
        if _is_guess(row):
            self.prefetch_used += 1
            row.priority = Priority.INFERENCE  # somebody asked
        row.leases[lease] = now + (self.limits.lease_seconds if seconds is None else seconds)
        row.last_used = now
        row.hits += 1
        return row

    def renew(self, name: str, lease: str, now: float) -> bool:
        """False: it ran out, and the entry may be gone."""
        row = self.rows.get(name)
        if row is None or row.leases.get(lease, 0.0) <= now:
            return False
        row.leases[lease] = now + self.limits.lease_seconds
        row.last_used = now
        return True

    def release(self, name: str, lease: str, now: float) -> None:
        row = self.rows.get(name)
        if row is not None and row.leases.pop(lease, None) is not None:
            row.last_used = now

    def expire(self, now: float) -> None:
        """Leases of holders that died."""
        for row in self.rows.values():
            for lease in [lease for lease, until in row.leases.items() if until <= now]:
                del row.leases[lease]

    def pin(self, name: str, pin: Pin, now: float) -> bool:
        row = self.rows.get(name)
        if row is None or row.dropped:
            return False
        row.pin = pin
        row.pinned_until = now + self.limits.soft_pin_seconds if pin is Pin.SOFT else 0.0
        return True

    def drop(self, names: Iterable[str]) -> None:
        """The study must not be here any more, pinned or not."""
        for name in names:
            row = self.rows.get(name)
            if row is not None:
                row.dropped = True

    @property
    def prefetch_worthwhile(self) -> bool:
        judged = self.prefetch_used + self.prefetch_dropped
        return judged < PREFETCH_TRIAL or self.prefetch_used >= PREFETCH_WORTH * judged


def _is_guess(row: Row) -> bool:
    return not row.priority.demanded
