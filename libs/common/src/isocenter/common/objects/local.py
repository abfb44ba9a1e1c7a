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
from isocenter.common.objects.ports import Buffer, Last, ObjectInfo, PutResult
from isocenter.common.objects.shelf import Shelf
from isocenter.common.objects.workers import Workers, WorkersClosed

PIECE: Final = 1 << 20
"""The size of streamed pieces."""
JOURNALED: Final = 128 << 10
"""Up to this size the bytes go through the journal: a second copy costs less than a sync of the file."""
_LIST_BATCH: Final = 64

Result = TypeVar("Result")


class LocalObjectStore:
    """An `ObjectStore` in one directory. Blocking calls run in bounded pools of threads.

    Several processes may share the directory. Directories that become empty stay.

    Args:
        root: created (mode 0700) if it is not there. Its file system must support hard links and fsync.
        workers: threads that write, which is also the number of fsyncs in flight; so many others read.

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
        # A disk that does not answer a sync keeps the threads of those who put. Who reads, or asks how the
        # store is, needs others.
        self._workers = Workers(workers, "objects")
        self._readers = Workers(workers, "objects-read")
        self._checks = Workers(1, "objects-check")

    def stage(self) -> LocalStaging:
        return LocalStaging(self, self._shelf)

    async def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> PutResult:
        async with self.stage() as staging:
            await staging.write(data)
            return await staging.commit(key, metadata or {})

    async def get(self, key: str) -> bytes:
        """The whole payload, checked. Raises NotFound, IntegrityError, StoreUnavailable."""
        return await self._read(lambda: self._shelf.read_whole(key))

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Payload bytes [start, end). Not checked against the digest, which covers the whole."""
        return await self._read(lambda: self._shelf.read_range(key, start, end))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Payload bytes [start, end) in pieces of 1 MiB.

        Raises:
            NotFound, StoreUnavailable
            IntegrityError: a stream of the whole object does not hash to its digest; the last piece is
            withheld.
        """
        descriptor, info = await self._read(lambda: self._shelf.open(key))
        try:
            stop = info.size if end is None else min(end, info.size)
            digest = hashlib.sha256() if start <= 0 and stop == info.size else None
            position = max(0, start)
            while position < stop:
                size = min(PIECE, stop - position)
                piece = await self._read(partial(_read_piece, descriptor, position, size, digest))
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
        return await self._read(lambda: self._shelf.head(key))

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects in ascending key order; the names of one directory at a time are in memory.

        Raises:
            IntegrityError: at the very end, if trailers could not be read: no damaged object hides the sound
            ones.
        """
        damaged: list[str] = []
        walk = self._shelf.walk(check_prefix(prefix), start_after, damaged)
        while batch := await self._read(lambda: _list_batch(walk)):
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
        while batch := await self._read(lambda: _list_batch(walk)):
            for info in batch:
                yield info
        if damaged:
            raise IntegrityError("pending objects with damaged trailers", count=len(damaged))

    async def check(self) -> None:
        """Writes, syncs, reads and removes a small file. Raises StoreFull, StoreUnavailable."""
        await self._run(self._checks, self._shelf.probe)

    async def close(self) -> None:
        """Waits for calls in flight. The store is not usable afterwards."""
        for workers in (self._workers, self._readers, self._checks):
            await asyncio.to_thread(workers.close)
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._shelf.close)

    async def run(self, call: Callable[[], Result]) -> Result:
        """Runs a blocking call in the pool. Returns or raises only when the thread is done with its buffers.

        A cancelled caller waits for its thread too: descriptors and buffers may be reused once this returns.
        """
        return await self._run(self._workers, call)

    async def _read(self, call: Callable[[], Result]) -> Result:
        return await self._run(self._readers, call)

    @staticmethod
    async def _run(workers: Workers, call: Callable[[], Result]) -> Result:
        try:
            return await workers.run(call)
        except OSError as error:
            raise translated(error) from None
        except WorkersClosed:
            raise StoreUnavailable("the object store is closed") from None


class LocalStaging:
    """An object on its way: a small one stays in memory and costs one trip to a thread."""

    def __init__(self, store: LocalObjectStore, shelf: Shelf) -> None:
        self._store = store
        self._shelf = shelf
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        """Of what is in the file."""
        self._size = 0
        """Of it."""
        self._file: tuple[Path, int] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._buffer = bytearray()
        if self._file is not None:
            await self._store.run(self._discard)

    async def write(self, data: Buffer) -> None:
        self._require_open()
        if self._is_small(data):
            self._buffer += data
        else:
            await self.extend(lambda: data)

    async def extend(self, make: Callable[[], Buffer]) -> None:
        self._require_open()
        try:
            await self._store.run(lambda: self._append(make()))
        except BaseException:
            self._closed = True
            raise

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        return await self.conclude(lambda: Last(b"", key, metadata), pending=pending)

    async def conclude(self, make: Callable[[], Last], *, pending: bool = False) -> PutResult:
        self._require_open()
        self._closed = True
        return await self._store.run(lambda: self._conclude(make(), pending=pending))

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("staging was committed or discarded already")

    def _is_small(self, data: Buffer) -> bool:
        return self._file is None and len(self._buffer) + len(data) <= JOURNALED

    def _append(self, data: Buffer) -> None:
        if self._is_small(data):
            self._buffer += data
            return
        if self._file is None:
            self._file = self._shelf.new_staged()
        buffered, self._buffer = self._buffer, bytearray()
        for piece in (buffered, data):
            if piece:
                self._digest.update(piece)
                write_all(self._file[1], piece)
                self._size += len(piece)

    def _conclude(self, last: Last, *, pending: bool) -> PutResult:
        key, metadata = check_key(last.key), check_metadata(last.metadata)
        self._append(last.data)
        if self._file is None:
            digest = hashlib.sha256(self._buffer).hexdigest()
            info = self._shelf.describe(key, len(self._buffer), digest, metadata)
            return self._shelf.commit_small(self._buffer, info, pending=pending)
        info = self._shelf.describe(key, self._size, self._digest.hexdigest(), metadata)
        (staged, descriptor), self._file = self._file, None
        return self._shelf.commit_file(staged, descriptor, info, pending=pending)

    def _discard(self) -> None:
        if self._file is not None:
            (path, descriptor), self._file = self._file, None
            os.close(descriptor)
            path.unlink(missing_ok=True)


def _list_batch(walk: Iterator[ObjectInfo]) -> list[ObjectInfo]:
    return list(itertools.islice(walk, _LIST_BATCH))


def _read_piece(descriptor: int, start: int, size: int, digest: hashlib._Hash | None) -> bytes:
    piece = read_exactly(descriptor, start, size)
    if digest is not None:
        digest.update(piece)
    return piece
