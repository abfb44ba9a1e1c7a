"""What waits between the wire and the task that stores: bounded, so that a slow store slows the sender."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from isocenter.ingest.dimse.command import Command
    from isocenter.ingest.dimse.negotiation import Context


@dataclass(slots=True)
class Chunk:
    """A piece of a data set: `view[:used]`. `last` ends the data set."""

    view: memoryview
    used: int = 0
    last: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A DIMSE request; the chunks of its data set follow, if it has one."""

    context_id: int
    context: Context
    command: Command


class End(Enum):
    """Nothing follows."""

    RELEASED = auto()
    """The peer asks for a release."""
    LOST = auto()
    """Aborted by either side, or the connection is gone."""


Item = Request | Chunk | End


class Inbox:
    """Requests and chunks in the order of the wire. One writer (synchronous) and one reader.

    `pause` is called when `limit` chunks are out (waiting or being stored), `resume` when they are fewer.
    The writer may finish what it has in hand after `pause`.
    """

    def __init__(
        self, *, chunk_bytes: int, limit: int, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._items: deque[Item] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._arriving: Chunk | None = None
        self._spare: list[Chunk] = []
        self._out = 0
        self.requests = 0
        """Requests that wait."""
        self.paused = False
        self._waiting = False
        self._released = False

    @property
    def idle(self) -> bool:
        """The reader waits and there is nothing for it."""
        return self._waiting and not self._items and not self.paused

    def put(self, item: Request | End) -> None:
        if isinstance(item, Request):
            self.requests += 1
        self._append(item)

    def write(self, data: memoryview) -> None:
        """Bytes of the data set that is arriving; they are copied."""
        position, size = 0, len(data)
        while position < size:
            chunk = self._current()
            room = len(chunk.view) - chunk.used
            if room == 0:
                self._send(chunk)
                continue
            taken = min(room, size - position)
            chunk.view[chunk.used : chunk.used + taken] = data[position : position + taken]
            chunk.used += taken
            position += taken

    def end_data_set(self) -> None:
        chunk = self._current()
        chunk.last = True
        self._send(chunk)

    def recycle(self, chunk: Chunk) -> None:
        """The reader is through with the chunk."""
        self._out -= 1
        chunk.used, chunk.last = 0, False
        if self._released:
            chunk.view = memoryview(b"")
        elif len(self._spare) < self._limit:
            self._spare.append(chunk)
        if self.paused and self._out < self._limit:
            self.paused = False
            self._resume()

    def release(self) -> None:
        """Nothing more will be written: what is kept for that may go."""
        self._released = True
        self._arriving = None
        self._spare.clear()

    async def next(self) -> Item:
        """Returns at once, without a turn of the event loop, while something waits."""
        while not self._items:
            self._waiting = True
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._waiting = False
        item = self._items.popleft()
        if isinstance(item, Request):
            self.requests -= 1
        return item

    def _current(self) -> Chunk:
        if self._arriving is None:
            self._arriving = self._spare.pop() if self._spare else self._new()
        return self._arriving

    def _new(self) -> Chunk:
        return Chunk(memoryview(bytearray(self._chunk_bytes)))

    def _send(self, chunk: Chunk) -> None:
        self._arriving = None
        self._out += 1
        self._append(chunk)
        if not self.paused and self._out >= self._limit:
            self.paused = True
            self._pause()

    def _append(self, item: Item) -> None:
        self._items.append(item)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
