"""Who is charged what, who may stay, who must go: pure decisions, no file and no clock.

Times are seconds of one clock that never goes back; `now` is always an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from isocenter.common.errors import Overloaded, Permanent
from isocenter.gpu_stager.cache.rows import Limits, Pin, Priority, Row
from isocenter.gpu_stager.cache.states import CHARGED, Impossible, State, Stimulus, after

__all__ = ["CacheFull", "Ledger", "Limits", "Pin", "Priority", "Row", "TooLarge"]

PREFETCH_TRIAL: Final = 20
"""Prefetched entries that were used or dropped before their use is judged."""
PREFETCH_WORTH: Final = 0.2


class TooLarge(Permanent):
    """One entry would take more of the cache than any may."""

    code = "too-large"


class CacheFull(Overloaded):
    """What could go is not enough: leased, pinned, or in the making. Later there may be room."""

    code = "cache-full"


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

        At no time is more charged than the quota and one entry. Guesses stay below the high mark: above it
        what was demanded would go for them.

        Args:
            row: of an entry that is absent or failed.
            now: the time.
            floor: bytes that the free space of its disk falls short of, with this entry on it.
            forced: it may take more than the largest share.

        Raises:
            TooLarge, CacheFull
        """
        old = self.rows.get(row.name)
        if old is not None and old.state is not State.FAILED:
            if old.making or old.available:
                raise Impossible(f"{Stimulus.RESERVE} while {old.state}")
            raise CacheFull("an older copy is on its way out", entry=row.name)
        self._check_size(row, row.bytes, forced=forced)
        chosen = self._make_room(row, row.bytes, floor, now)
        row.failures = old.failures if old is not None else 0
        row.state = old.state if old is not None else State.ABSENT
        self.rows[row.name] = row
        row.last_used = now
        self.move(row.name, Stimulus.RESERVE)
        for name in chosen:
            self._evict(name)
        return chosen

    def resize(self, name: str, size: int, now: float, *, forced: bool = False) -> list[str]:
        """The real size of an entry in the making is known. Returns what must be evicted, as `reserve`.

        Raises:
            TooLarge, CacheFull
            Impossible: it is not in the making.
        """
        row = self.rows[name]
        if not row.making:
            raise Impossible(f"resize while {row.state}")
        chosen: list[str] = []
        if size > row.bytes:
            self._check_size(row, size, forced=forced)
            chosen = self._make_room(row, size - row.bytes, 0, now)
        row.bytes = size
        for each in chosen:
            self._evict(each)
        return chosen

    def _check_size(self, row: Row, size: int, *, forced: bool) -> None:
        limits = self.limits
        if size > limits.quota_bytes:
            raise TooLarge("larger than the whole cache", bytes=size)
        if size > limits.largest * limits.quota_bytes and not forced:
            raise TooLarge("larger than one entry may be", bytes=size)
        if not row.priority.demanded and size > limits.prefetch * limits.quota_bytes:
            raise CacheFull("larger than the share of what nobody asked for", bytes=size)

    def _make_room(self, entry: Row, size: int, floor: int, now: float) -> list[str]:
        """What goes so that `size` bytes more can be charged. Bytes that are on their way out count as gone.

        Raises CacheFull.
        """
        limits, disk, demanded = self.limits, entry.disk, entry.priority.demanded
        charged = self.charged
        leaving = [row for row in self.rows.values() if row.state is State.EVICTING]
        if leaving and charged > limits.quota_bytes:
            raise CacheFull("what makes room for another entry is not gone yet")
        most = limits.quota_bytes if demanded else int(limits.high * limits.quota_bytes)
        missing = charged + size - most - sum(row.bytes for row in leaving)
        if not demanded:
            share = int(limits.prefetch * limits.quota_bytes)
            staying = self.prefetched - sum(row.bytes for row in leaving if _is_guess(row))
            missing = max(missing, staying + size - share)
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
        """What may go, the first first: guesses that no pin holds any more, then by age, soft pins last."""

        def order(row: Row) -> tuple[int, float]:
            soft = row.pinned(now) is Pin.SOFT
            return (0 if row.dropped else 3 if soft else 1 if _is_guess(row) else 2, row.last_used)

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
        """By hand, pinned or not. False: it is not there, or somebody holds it."""
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

    def wanted(self, row: Row, priority: Priority) -> None:
        """Somebody asks for an entry that is here or in the making: if he waits for it, it is no guess."""
        if priority.demanded and _is_guess(row):
            self.prefetch_used += 1
        row.priority = min(row.priority, priority)

    def use(self, name: str, lease: str, now: float, *, look: bool = False) -> Row | None:
        """Leases a ready entry. None: it is not there, or is on its way out.

        Args:
            name: the entry.
            lease: what the lease is called.
            now: the time.
            look: for whoever checks the entry and does not need it: that is no use of it.
        """
        row = self.rows.get(name)
        if row is None or not row.available:
            return None
        row.leases[lease] = now + self.limits.lease_seconds
        if not look:
            self.wanted(row, Priority.INFERENCE)
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

    def release(self, name: str, lease: str, now: float, *, look: bool = False) -> None:
        row = self.rows.get(name)
        if row is not None and row.leases.pop(lease, None) is not None and not look:
            row.last_used = now

    def expire(self, now: float) -> None:
        """Leases of holders that died."""
        for row in self.rows.values():
            for lease in [lease for lease, until in row.leases.items() if until <= now]:
                del row.leases[lease]

    def pin(self, name: str, pin: Pin, now: float) -> bool:
        row = self.rows.get(name)
        if row is None or row.dropped or row.state is State.EVICTING:
            return False
        row.pin = pin
        row.pinned_until = now + self.limits.soft_pin_seconds if pin is Pin.SOFT else 0.0
        return True

    def drop(self, names: Iterable[str], reason: str) -> None:
        """The study must not be here any more, pinned or not."""
        for name in names:
            row = self.rows.get(name)
            if row is not None:
                row.dropped = reason

    def lost(self, disk: int) -> list[Row]:
        """The disk is out of use: its complete entries are forgotten, whoever holds them."""
        rows = [row for row in self.rows.values() if row.disk == disk and row.state is State.READY]
        for row in rows:
            row.leases.clear()
            self._evict(row.name)
            self.move(row.name, Stimulus.GONE)
        return rows

    @property
    def prefetch_worthwhile(self) -> bool:
        judged = self.prefetch_used + self.prefetch_dropped
        return judged < PREFETCH_TRIAL or self.prefetch_used >= PREFETCH_WORTH * judged


def _is_guess(row: Row) -> bool:
    return not row.priority.demanded
