"""Time and identifiers, injected so that tests control them. UTC everywhere."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID


class Clock(Protocol):
    """What the platform asks of time and identity."""

    def now(self) -> datetime:
        """Aware UTC wall time."""
        ...

    def new_id(self) -> str:
        """A UUIDv7 (RFC 9562 section 5.7) as text: event ids sort by creation."""
        ...


class SystemClock:
    """Wall time and fresh UUIDv7 values."""

    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - the one place where wall time enters

    def new_id(self) -> str:
        return str(uuid7(time.time_ns() // 1_000_000, os.urandom(10)))


@dataclass
class ManualClock:
    """A clock that stands still until told otherwise; ids count up."""

    current: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    _count: int = 0

    def now(self) -> datetime:
        return self.current

    def advance(self, seconds: float) -> None:
        self.current += timedelta(seconds=seconds)

    def new_id(self) -> str:
        self._count += 1
        milliseconds = int(self.current.timestamp() * 1000)
        return str(uuid7(milliseconds, self._count.to_bytes(10, "big")))


def uuid7(unix_ms: int, entropy: bytes) -> UUID:
    """UUIDv7 from a Unix time in milliseconds and 10 bytes of entropy (RFC 9562 section 5.7)."""
    value = (unix_ms & (1 << 48) - 1) << 80 | int.from_bytes(entropy, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)
