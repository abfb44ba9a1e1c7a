"""Group commit: one thread, one connection, one transaction for everything that waits."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from isocenter.common.bus.embedded.schema import open_writer
from isocenter.common.errors import BusUnavailable

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]
PATIENCE_SECONDS = 0.02
"""How long a job that nobody waits for may wait for company, so that it costs no sync of its own."""
MAX_JOBS = 512
"""Jobs in one transaction: bounds how long the first of them waits for the last."""


@dataclass(frozen=True, slots=True)
class _Pending:
    job: Job[Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    transaction: bool = True
    patient: bool = False


class Writer:
    """Runs jobs in order. While one transaction is being made durable the next one gathers, so the cost of
    fsync is shared by whoever waits for it.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self._connection = open_writer(path, max_bytes=max_bytes)
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._closed = False
        self.transactions = 0
        self.fault: str | None = None
        """Name of the error of the last transaction, None while writing works."""
        self._thread = threading.Thread(target=self._run, name="isocenter-bus-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job[T], *, patient: bool = False) -> asyncio.Future[T]:
        """The job's result once its transaction is durable.

        A `patient` job shares the transaction of the next one that is not, within `PATIENCE_SECONDS`.

        Raises (from the future):
            BusUnavailable: SQLite refused (disk full, I/O error); nothing of the job was kept.
        """
        return self._put(job, transaction=True, patient=patient)

    def checkpoint(self) -> asyncio.Future[None]:
        """Moves the WAL into the file and truncates it, unless a reader is in the way.

        SQLite also does so by itself every 1,000 pages; this is for a log that has become quiet.
        """
        return self._put(_checkpoint, transaction=False)

    def close(self) -> None:
        """Finishes what waits, moves the WAL into the file and closes it."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _put(self, job: Job[T], *, transaction: bool, patient: bool = False) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._closed:
            future.set_exception(BusUnavailable("the event log is closed"))
        else:
            self._queue.put(_Pending(job, loop, future, transaction, patient))
        return future

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch, stopping = self._gather()
            for item in [item for item in batch if not item.transaction]:
                with contextlib.suppress(sqlite3.Error):
                    item.job(self._connection)
                _answer(item, None)
            if batch := [item for item in batch if item.transaction]:
                self._commit(batch)

    def _gather(self) -> tuple[list[_Pending], bool]:
        """What waits, and whether the end was reached. Blocks until there is something."""
        batch: list[_Pending] = []
        item = self._queue.get()
        waited = False
        while item is not None:
            batch.append(item)
            if len(batch) == MAX_JOBS:
                return batch, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                if waited or not all(item.patient for item in batch):
                    return batch, False
                waited = True
                try:
                    item = self._queue.get(timeout=PATIENCE_SECONDS)
                except queue.Empty:
                    return batch, False
        return batch, True

    def _commit(self, batch: list[_Pending]) -> None:
        results = self._transaction(batch)
        if isinstance(results, Exception) and len(batch) > 1:
            # One oversized job must not fail its neighbours.
            for item in batch:
                self._commit([item])
            return
        for item, result in zip(
            batch, results if isinstance(results, list) else [results] * len(batch), strict=True
        ):
            _answer(item, result)

    def _transaction(self, batch: list[_Pending]) -> list[Any] | Exception:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [item.job(self._connection) for item in batch]
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
            if not isinstance(error, sqlite3.Error):
                return error
            self.fault = getattr(error, "sqlite_errorname", type(error).__name__)
            return BusUnavailable("the event log could not be written", cause=str(self.fault))
        self.transactions += 1
        self.fault = None
        return results


def _checkpoint(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _answer(item: _Pending, result: object) -> None:
    with contextlib.suppress(RuntimeError):  # its event loop is gone: nobody waits any more
        item.loop.call_soon_threadsafe(_resolve, item.future, result)


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
