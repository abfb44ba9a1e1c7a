"""Who waits for what: requests for room, by urgency, and work in threads that must not be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from isocenter.common.errors import Overloaded
from isocenter.gpu_stager.cache.rows import Priority

WAITING: Final = 1000
"""Requests that wait for room; more are refused."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the queue. It moves forward when somebody more urgent waits for the same."""

    priority: Priority
    number: int = 0


class Queue:
    """Requests that wait for room, the most urgent first, then the oldest."""

    def __init__(self) -> None:
        self._waiting: list[Ticket] = []
        self._first: Ticket | None = None
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def place(self, ticket: Ticket) -> Iterator[None]:
        """Raises Overloaded."""
        if len(self._waiting) >= WAITING:
            raise Overloaded("too many requests wait for room in the cache")
        self._count += 1
        ticket.number = self._count
        self._waiting.append(ticket)
        self._order()
        try:
            yield
        finally:
            self._waiting.remove(ticket)
            self._order()

    def first(self, ticket: Ticket) -> bool:
        return ticket is self._first

    def hurry(self, ticket: Ticket, priority: Priority) -> None:
        if priority < ticket.priority:
            ticket.priority = priority
            self._order()

    def _order(self) -> None:
        self._first = min(self._waiting, key=lambda each: (each.priority, each.number), default=None)


async def finished(work: Callable[..., T], *arguments: object) -> tuple[T, bool]:
    """What a thread makes of it, and whether the caller was cancelled meanwhile.

    A thread cannot be stopped: whoever clears up while it runs takes the floor from under it.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    return future.result(), cancelled
