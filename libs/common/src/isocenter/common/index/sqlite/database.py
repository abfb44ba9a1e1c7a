"""One SQLite file used from asyncio: one writer thread, a few reader threads, errors in our own words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from isocenter.common.errors import IndexUnavailable
from isocenter.common.index.sqlite import schema

T = TypeVar("T")

READERS = 4
BUSY_SECONDS = 10.0
"""How long a write waits for another process (a rebuild) before it fails as Transient."""


class Database:
    """WAL and `synchronous=FULL`: what a write returned for survives power loss.

    Writes run one after another on one thread, each in its own `BEGIN IMMEDIATE` transaction: whole or not at
    all. Reads see one snapshot each and never wait for a write. A call that is cancelled still runs to its
    end on its thread; the caller only stops waiting for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._writers = ThreadPoolExecutor(1, "index-writer")
        self._readers = ThreadPoolExecutor(READERS, "index-reader")
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._writer: sqlite3.Connection | None = None

    @classmethod
    async def open(cls, path: Path) -> Database:
        """Raises Misconfigured for a file that is not ours, IndexUnavailable if it cannot be opened."""
        database = cls(path)
        try:
            await asyncio.get_running_loop().run_in_executor(database._writers, database._prepare)
        except BaseException:
            await database.close()
            raise
        return database

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._submit(self._readers, self._reading, work)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._submit(self._writers, self._writing, work)

    async def close(self) -> None:
        """Waits for the calls in hand."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._shutdown)

    async def _submit(
        self,
        pool: ThreadPoolExecutor,
        run: Callable[[Callable[[sqlite3.Connection], T]], T],
        work: Callable[[sqlite3.Connection], T],
    ) -> T:
        if self._closed:
            raise IndexUnavailable("the index is closed")
        return await asyncio.get_running_loop().run_in_executor(pool, run, work)

    def _prepare(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Created by us so that the mode is right from the first byte; SQLite gives -wal and -shm the
            # same.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            schema.prepare(self._writer)
            for _ in range(READERS):
                reader = self._connect()
                reader.execute("PRAGMA query_only = ON")
                self._idle.put(reader)
        except (OSError, sqlite3.Error) as error:
            raise _unavailable(error) from None

    def _connect(self) -> sqlite3.Connection:
        # check_same_thread: connections move between the threads of a pool, one thread at a time.
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection

    def _reading(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._idle.get()
        try:
            connection.execute("BEGIN")
            return work(connection)
        except sqlite3.Error as error:
            raise _unavailable(error) from None
        finally:
            _roll_back(connection)
            self._idle.put(connection)

    def _writing(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._writer
        if connection is None:
            raise IndexUnavailable("the index is closed")
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
            return result
        except sqlite3.Error as error:
            raise _unavailable(error) from None
        finally:
            _roll_back(connection)

    def _shutdown(self) -> None:
        self._writers.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        while not self._idle.empty():
            self._idle.get().close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):  # the error that made us roll back is the one to tell
            connection.execute("ROLLBACK")


def _unavailable(error: Exception) -> IndexUnavailable:
    """SQLite's own words can quote values of a constraint: only the kind of the error is told."""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    hint = {"SQLITE_FULL": "the disk of the index is full", "SQLITE_BUSY": "another process holds the index"}
    return IndexUnavailable(hint.get(name, "the index cannot be used"), cause=name)
