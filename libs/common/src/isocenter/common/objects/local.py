"""Objects as files in a directory: durable, never overwritten, never half there.

`<root>/objects/<key>@1` holds an object (see `isocenter.common.objects.trailer`); `@1` is the version of the
format, and `@` is no character of a key, so a key can never name a directory of another. `<root>/staging/`
holds unfinished files on the same file system, which must know hard links.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from isocenter.common.clock import Clock, SystemClock
from isocenter.common.errors import IntegrityError, Misconfigured, StoreUnavailable
from isocenter.common.objects.files import read_exactly, translated, write_all
from isocenter.common.objects.journal import SEGMENT_BYTES
from isocenter.common.objects.keys import check_key, check_metadata, check_prefix
from isocenter.common.objects.ports import ObjectInfo, PutResult
from isocenter.common.objects.shelf import Shelf
from isocenter.common.objects.workers import Workers, WorkersClosed

PIECE: Final = 1 << 20
"""Bytes gathered before a thread is asked to write, and the size of streamed pieces."""

_ASIDE: Final = 128 << 10
"""From this size on hashing and writing take longer than the hop to a thread."""
_LIST_BATCH: Final = 64

Result = TypeVar("Result")


class LocalObjectStore:
    """An `ObjectStore` in one directory. Blocking calls run in a bounded pool of threads.

    Several processes may share the directory. Directories that become empty stay.

    Args:
        root: created (mode 0700) if it is not there. Its file system must support hard links and fsync.
        workers: threads, which is also the number of fsyncs in flight.

    Raises:
        Misconfigured: the directory cannot be created or written.
        StoreFull, StoreUnavailable
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock | None = None,
        workers: int = 8,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._closed = False
        try:
            self._shelf = Shelf(root, clock or SystemClock(), segment_bytes)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise Misconfigured(f"object directory cannot be used: {error.strerror}") from None
        except OSError as error:
            raise translated(error) from None
        self._workers = Workers(workers, "objects")

    def stage(self) -> LocalStaging:
        return LocalStaging(self, self._shelf)

    async def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> PutResult:
        async with self.stage() as staging:
            await staging.write(data)
            return await staging.commit(key, metadata or {})

    async def get(self, key: str) -> bytes:
        """The whole payload, checked. Raises NotFound, IntegrityError, StoreUnavailable."""
        return await self.run(lambda: self._shelf.read_whole(key))

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Payload bytes [start, end). Not checked against the digest, which covers the whole."""
        return await self.run(lambda: self._shelf.read_range(key, start, end))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Payload bytes [start, end) in pieces of 1 MiB.

        Raises:
            NotFound, StoreUnavailable
            IntegrityError: a stream of the whole object does not hash to its digest; the last piece is
            withheld.
        """
        descriptor, info = await self.run(lambda: self._shelf.open(key))
        try:
            stop = info.size if end is None else min(end, info.size)
            digest = hashlib.sha256() if start <= 0 and stop == info.size else None
            position = max(0, start)
            while position < stop:
                size = min(PIECE, stop - position)
                piece = await self.run(partial(_read_piece, descriptor, position, size, digest))
                position += len(piece)
                if len(piece) < size or (
                    digest and position == info.size and digest.hexdigest() != info.sha256
                ):
                    raise IntegrityError("object does not hash to its digest", key=key)
                yield piece
        finally:
            os.close(descriptor)

    async def head(self, key: str) -> ObjectInfo:
        """Raises NotFound, IntegrityError, StoreUnavailable."""
        return await self.run(lambda: self._shelf.head(key))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects in ascending key order; the names of one directory at a time are in memory.

        Raises:
            IntegrityError: at the very end, if trailers could not be read: no damaged object hides the sound
            ones.
        """
        damaged: list[str] = []
        walk = self._shelf.walk(check_prefix(prefix), start_after, damaged)
        while batch := await self.run(lambda: _list_batch(walk)):
            for info in batch:
                yield info
        if damaged:
            raise IntegrityError("objects with damaged trailers", count=len(damaged), first=damaged[0])

    async def delete(self, key: str) -> None:
        await self.run(lambda: self._shelf.remove(key))

    async def confirm(self, keys: Iterable[str]) -> None:
        names = list(keys)
        await self.run(lambda: self._shelf.confirm(names))

    async def pending(self) -> AsyncIterator[ObjectInfo]:
        """Also raises IntegrityError at the very end for damaged ones, like `list`."""
        damaged: list[str] = []
        walk = self._shelf.left_pending(damaged)
        while batch := await self.run(lambda: _list_batch(walk)):
            for info in batch:
                yield info
        if damaged:
            raise IntegrityError("pending objects with damaged trailers", count=len(damaged))

    async def check(self) -> None:
        """Writes, syncs, reads and removes a small file. Raises StoreFull, StoreUnavailable."""
        await self.run(self._shelf.probe)

    async def close(self) -> None:
        """Waits for calls in flight. The store is not usable afterwards."""
        await asyncio.to_thread(self._workers.close)
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._shelf.close)

    async def run(self, call: Callable[[], Result]) -> Result:
        """Runs a blocking call in the pool. Returns or raises only when the thread is done with its buffers.

        A cancelled caller waits for its thread too: descriptors and buffers may be reused once this returns.
        """
        try:
            return await self._workers.run(call)
        except OSError as error:
            raise translated(error) from None
        except WorkersClosed:
            raise StoreUnavailable("the object store is closed") from None


class LocalStaging:
    """An object on its way. Up to 1 MiB stays in memory; a small object costs one trip to a thread.

    What comes in large pieces is hashed and written as it comes, though it may go through the journal too:
    its writer has other things to do meanwhile, and nothing to do at the end but wait.
    """

    def __init__(self, store: LocalObjectStore, shelf: Shelf) -> None:
        self._store = store
        self._shelf = shelf
        self._buffer = bytearray()
        self._absorbed = 0
        """Bytes of the buffer that are hashed and in the file."""
        self._digest = hashlib.sha256()
        self._size = 0
        self._file: tuple[Path, int] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        # Not clear(): after a failed write a traceback may still hold a view of the buffer, which then cannot
        # be resized, and the file below would stay.
        self._buffer = bytearray()
        if self._file is not None:
            await self._store.run(self._discard)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._require_open()
        in_memory = len(self._buffer) + len(data) < PIECE
        if in_memory:
            self._buffer += data
            if self._size or len(data) < _ASIDE:
                return
        try:
            if in_memory:
                await self._store.run(self._absorb)
            else:
                await self._flush(data)
        except BaseException:
            self._closed = True
            raise

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        self._require_open()
        check_key(key)
        checked = check_metadata(metadata)
        self._closed = True
        return await self._store.run(lambda: self._commit(key, checked, pending=pending))

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("staging was committed or discarded already")

    def _absorb(self) -> None:
        if self._absorbed < len(self._buffer):
            with memoryview(self._buffer) as view:
                self._digest.update(view[self._absorbed :])
                write_all(self._opened()[1], view[self._absorbed :])
            self._absorbed = len(self._buffer)

    async def _flush(self, data: bytes | bytearray | memoryview) -> None:
        """Hashes and writes in two threads. Both are through with the buffer when this returns or raises."""
        if self._buffer:
            await self._store.run(self._absorb)
            self._size += len(self._buffer)
            self._buffer = bytearray()
            self._absorbed = 0
        if len(data) < _ASIDE:
            await self._store.run(lambda: self._both(data))
        else:
            done = await asyncio.gather(
                self._store.run(lambda: self._digest.update(data)),
                self._store.run(lambda: write_all(self._opened()[1], data)),
                return_exceptions=True,
            )
            for error in done:
                if error is not None:
                    raise error
        self._size += len(data)

    def _both(self, data: bytes | bytearray | memoryview) -> None:
        self._digest.update(data)
        write_all(self._opened()[1], data)

    def _opened(self) -> tuple[Path, int]:
        if self._file is None:
            self._file = self._shelf.new_staged()
        return self._file

    def _commit(self, key: str, metadata: Mapping[str, str], *, pending: bool) -> PutResult:
        if self._size == 0:
            digest = self._digest.copy()
            with memoryview(self._buffer) as view:
                digest.update(view[self._absorbed :])
            info = self._shelf.describe(key, len(self._buffer), digest.hexdigest(), metadata)
            file, self._file = self._file, None
            return self._shelf.commit_small(self._buffer, info, file, self._absorbed, pending=pending)
        self._absorb()
        self._size += len(self._buffer)
        sha256 = self._digest.hexdigest()
        found = self._shelf.existing(key, sha256)
        if found.kept is not None:
            self._discard()
            return found.kept
        staged, descriptor = self._opened()
        if pending:
            staged = self._shelf.pending.mark(staged)
            self._file = staged, descriptor
        info = self._shelf.describe(key, self._size, sha256, metadata)
        keep = False
        try:
            result = self._shelf.commit_file(staged, descriptor, info, healed=found.damaged)
            keep = pending and result.created
            if keep:
                self._shelf.pending.add(key, staged)
            return result
        finally:
            self._discard(keep=keep)

    def _discard(self, *, keep: bool = False) -> None:
        if self._file is not None:
            path, descriptor = self._file
            self._file = None
            os.close(descriptor)
            if not keep:
                path.unlink(missing_ok=True)


def _list_batch(walk: Iterator[ObjectInfo]) -> list[ObjectInfo]:
    return list(itertools.islice(walk, _LIST_BATCH))


def _read_piece(descriptor: int, start: int, size: int, digest: hashlib._Hash | None) -> bytes:
    piece = read_exactly(descriptor, start, size)
    if digest is not None:
        digest.update(piece)
    return piece
