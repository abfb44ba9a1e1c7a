"""Whether instances are taken now: there is room for them, and their events find a bus.

Beyond the mark an instance is refused before a byte of it reaches the store. A disk that is full to its last
block stops the event log, the index and the keys as well, and a bus that stands still costs every sender the
whole time limit of a publish. What is short is looked at every second, and at once after a failure that says
so; senders are let in again without anybody's help, with more room than they were shut out at.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import BusUnavailable, IsocenterError, Overloaded, StoreFull
from isocenter.common.service import Health

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from isocenter.common.service import Ports
    from isocenter.ingest.signals import Signals

LOOK_SECONDS: Final = 1.0
BUS_SECONDS: Final = 5.0
"""Between two looks at a bus that answered."""
STORE_SECONDS: Final = 5.0
"""A store that does not answer within them takes nothing."""
DOUBTS: Final = 3
"""Looks in a row at which a bus does not answer until it counts as gone. A publish that failed is one."""
RETRY_AFTER_SECONDS: Final = 30
"""What HTTP senders are told."""


class Short(StrEnum):
    """What there is too little of: a label of metrics, few values."""

    DISK = "disk"
    """A file system of this machine that takes objects, events or uploads has passed its mark."""
    STORE = "object-store"
    """The store said that it has no space, and a check of it fails since."""
    BUS = "bus"
    """Events cannot be published, and no further ones can be owed."""


_WHAT_TO_DO: Final = {
    Short.DISK: "free space is below ISOCENTER_INGEST_MIN_FREE_BYTES: make room or extend the volume",
    Short.STORE: "the object store has no space: extend it or raise its quota",
    Short.BUS: "the bus does not take events: check the broker",
}


@dataclass(frozen=True, slots=True)
class Marks:
    """Bytes free on each disk: below the one nothing is taken, from the other on it is again."""

    refuse_below: int
    resume_from: int


class Watermarks:
    """Asked before each instance, which costs nothing: the looking is done beside.

    Args:
        ports: whose store and bus are looked at.
        marks: of the disks.
        may_announce_later: a bus that does not answer is no reason to refuse while this says so.
        signals: told of each change.
    """

    def __init__(
        self, ports: Ports, marks: Marks, *, may_announce_later: Callable[[], bool], signals: Signals
    ) -> None:
        self._ports = ports
        self._marks = marks
        self._may_announce_later = may_announce_later
        self._signals = signals
        self._short: dict[Short, Overloaded] = {}
        self._free: int | None = None
        self._store_doubt = False
        self._store_look: asyncio.Task[None] | None = None
        self._bus_doubts = 0
        self._bus_due = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        signals.observe_shortages(lambda: [(each.value, each in self._short) for each in Short])

    @property
    def refusal(self) -> Overloaded | None:
        """Why no instance is taken now; None: they are."""
        for short, error in self._short.items():
            if short is not Short.BUS or not self._may_announce_later():
                return error
        return None

    def fits(self, size: int) -> bool:
        """Whether so many bytes would leave the disks above the mark, as of the last look."""
        return self._free is None or self._free - size >= self._marks.refuse_below

    def met(self, error: Exception) -> None:
        """An instance failed of this: what it says of the store or the bus counts for the next ones."""
        if self._watching is None:
            return  # nobody would find out that it is over
        if isinstance(error, StoreFull):
            self._store_doubt = True
        elif isinstance(error, BusUnavailable):
            self._bus_due = 0.0
            self._bus_doubts += 1
        else:
            return
        self._hurry.set()

    def health(self) -> Health:
        short = next(iter(self._short), None)
        if short is None or self.refusal is None:
            return Health("room", ok=True)
        return Health("room", ok=False, detail=_WHAT_TO_DO[short])

    async def start(self) -> None:
        """Returns after the first look."""
        await self.look()
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="watermarks")

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        if self._store_look is not None:
            self._store_look.cancel()
            self._store_look = None

    async def look(self) -> None:
        """Looks at what may have changed."""
        await self._look_at_disks()
        if self._store_doubt:
            await self._look_at_store()
        now = asyncio.get_running_loop().time()
        if self._bus_doubts or now >= self._bus_due:
            await self._look_at_bus()
            self._bus_due = now + BUS_SECONDS

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._hurry.wait()
            self._hurry.clear()
            await self.look()

    async def _look_at_disks(self) -> None:
        self._free = await asyncio.to_thread(free_bytes, self._ports.disks) if self._ports.disks else None
        if self._free is None:
            return
        shut = Short.DISK in self._short
        if self._free < (self._marks.resume_from if shut else self._marks.refuse_below):
            self._shut(Short.DISK)
        else:
            self._open(Short.DISK)

    async def _look_at_store(self) -> None:
        """Waits for a check no longer than its time, and for one that hangs as long as it does: it cannot
        always be cancelled, and a second one would hang as well.
        """
        if self._store_look is None:
            self._store_look = asyncio.ensure_future(self._ports.store.check())
        done, _ = await asyncio.wait({self._store_look}, timeout=STORE_SECONDS)
        if not done:
            self._shut(Short.STORE)
            return
        look, self._store_look = self._store_look, None
        try:
            look.result()
        except (IsocenterError, OSError):
            self._shut(Short.STORE)
        else:  # what did not fit was too large: others may fit
            self._store_doubt = False
            self._open(Short.STORE)

    async def _look_at_bus(self) -> None:
        try:
            found = await self._ports.bus.health()
        except (IsocenterError, OSError):
            ok = False
        else:
            ok = all(each.ok for each in found if each.name == "bus")
        if ok:
            self._bus_doubts = 0
            self._open(Short.BUS)
            return
        self._bus_doubts += 1
        if self._bus_doubts >= DOUBTS:
            self._shut(Short.BUS)

    def _shut(self, short: Short) -> None:
        if short not in self._short:
            self._short[short] = Overloaded(f"no instance is taken: {short.value}")
            self._signals.intake_shut(short.value, _WHAT_TO_DO[short])

    def _open(self, short: Short) -> None:
        if self._short.pop(short, None) is not None:
            self._signals.intake_opened(short.value)


def free_bytes(disks: Sequence[Path]) -> int | None:
    """Of the fullest file system; None: none of them can be asked, which their writers will tell."""
    found = []
    for path in disks:
        try:
            room = os.statvfs(path)
        except OSError:
            continue
        found.append(room.f_bavail * room.f_frsize)
    return min(found, default=None)
