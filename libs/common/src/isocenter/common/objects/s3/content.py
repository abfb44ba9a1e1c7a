"""The bytes of an object on their way: in memory while they are few, else in a file without a name."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, TypeVar

from isocenter.common.errors import StoreUnavailable
from isocenter.common.objects.files import read_exactly, translated, write_all

Result = TypeVar("Result")

PIECE: Final = 1 << 20
_HASHED_AT_ONCE: Final = 64 << 10
"""Below this a thread costs more than it saves."""


class Budget:
    """How much of memory all contents may hold together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, size: int) -> bool:
        if self.held + size > self._limit:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        self.held -= size


class Content:
    """Appended to, then read. A file has no name: the kernel removes it with the process.

    Args:
        scratch: where files are made; None: the system's temporary directory.
        limit: from this size on it is a file.
        budget: shared; a content that it has no room for is a file from then on.
    """

    def __init__(self, scratch: Path | None, limit: int, budget: Budget) -> None:
        self._scratch = scratch
        self._limit = limit
        self._budget = budget
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self.size = 0

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """Raises StoreFull, StoreUnavailable: there is no room for a file."""
        size = len(data)
        if self._file is None and self.size + size <= self._limit and self._budget.take(size):
            self._buffer += data
            self.size += size
            return
        await _in_thread(lambda: self._spill(data))

    async def finish(self) -> str:
        """Nothing more comes. The lower-case hex SHA-256 of it all."""
        if self._file is not None and self._buffer:
            await _in_thread(lambda: self._spill(b""))
        if self._file is None:
            if self.size < _HASHED_AT_ONCE:
                self._digest.update(self._buffer)
            else:
                await _in_thread(lambda: self._digest.update(self._buffer))
        return self._digest.hexdigest()

    def whole(self) -> bytearray | mmap.mmap:
        """All of it as one buffer; of a file, as the kernel's pages."""
        if self._file is None:
            return self._buffer
        return mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)

    async def pieces(self) -> AsyncIterator[bytes]:
        if self._file is None:
            yield bytes(self._buffer)
            return
        descriptor, position = self._file.fileno(), 0
        while position < self.size:
            start = position
            piece = await _in_thread(lambda: read_exactly(descriptor, start, PIECE))  # noqa: B023 - awaited here
            if not piece:
                raise StoreUnavailable("a scratch file is shorter than it was written")
            position += len(piece)
            yield piece

    async def drop(self) -> None:
        """Idempotent."""
        self._release()
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                await asyncio.to_thread(file.close)

    def _spill(self, data: bytes | bytearray | memoryview) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._scratch)  # noqa: SIM115 - closed by drop
            os.fchmod(self._file.fileno(), 0o600)
        for piece in (self._buffer, data):
            self._digest.update(piece)
            write_all(self._file.fileno(), piece)
        self.size += len(data)
        self._release()

    def _release(self) -> None:
        if self._file is not None or self._buffer:
            self._budget.give(len(self._buffer))
            # Not clear(): the client may still hold a view of it.
            self._buffer = bytearray()


async def _in_thread(call: Callable[[], Result]) -> Result:
    """Returns or raises only when the thread is done: buffers and descriptors may be reused then."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
    except OSError as error:
        raise translated(error) from None
