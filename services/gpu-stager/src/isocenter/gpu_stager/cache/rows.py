"""What the ledger keeps of an entry, and what bounds it. Times: seconds of a clock that never goes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from isocenter.gpu_stager.cache.states import IN_THE_MAKING, State


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
    dropped: str = ""
    """Why it goes as soon as nobody holds it, and nobody new gets it; empty: it stays."""
    retry_at: float = 0.0
    failures: int = 0
    verified: float = 0.0

    @property
    def available(self) -> bool:
        """Somebody new may have it."""
        return self.state is State.READY and not self.dropped

    def leased(self, now: float) -> bool:
        return any(until > now for until in self.leases.values())

    def pinned(self, now: float) -> Pin:
        if self.pin is Pin.SOFT and self.pinned_until <= now:
            return Pin.NONE
        return self.pin

    @property
    def making(self) -> bool:
        return self.state in IN_THE_MAKING
