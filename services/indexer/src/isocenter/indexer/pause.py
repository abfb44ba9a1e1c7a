"""How long the service may rest between two looks at what waits in the index."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from isocenter.common.index.ports import Backlog

LONGEST_SECONDS = 5.0
"""Nobody may be there to tell of what another replica left behind when it died: it is found by then."""


def rest_seconds(backlog: Backlog, now: datetime, *, soon: float, retry: float) -> float:
    """Until something can be due: what is due later is known, and what arrives meanwhile ends the rest.

    Args:
        backlog: what waits.
        now: of the clock that made its times.
        soon: the shortest rest. A study that is due and was not taken is another's, whose lease may end.
        retry: the rest while an entry of the outbox could not be published.
    """
    rest = LONGEST_SECONDS
    if backlog.outbox:
        rest = min(rest, retry)
    if backlog.settle_at is not None:
        rest = min(rest, (backlog.settle_at - now) / timedelta(seconds=1))
    return max(rest, soon)


class Pause:
    """A rest that work ends and news shortens. `begin` comes before the look, so that nothing is missed."""

    def __init__(self, soon: float) -> None:
        self._soon = soon
        self._work = asyncio.Event()
        self._news = False
        self._limit: asyncio.Timeout | None = None

    def begin(self) -> None:
        self._work.clear()
        self._news = False

    def end(self) -> None:
        """There is work."""
        self._work.set()

    def shorten(self) -> None:
        """Something has changed: the rest ends soon, and not at once, since more may change by then."""
        self._news = True
        if self._limit is not None:
            at = asyncio.get_running_loop().time() + self._soon
            self._limit.reschedule(min(at, self._limit.when() or at))

    async def rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(min(seconds, self._soon) if self._news else seconds) as self._limit:
                await self._work.wait()
        except TimeoutError:
            return
        finally:
            self._limit = None
