"""The key table of an embedded site: one SQLite file beside the objects, never among them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Final, Self, TypeVar

from isocenter.common.errors import KeysUnavailable, Misconfigured
from isocenter.common.keys.ports import WrappedKey

T = TypeVar("T")

BUSY_SECONDS: Final = 10.0
PAGE: Final = 500
_FORMAT: Final = 1
_COLUMNS: Final = "study_key, key_id, tenant, wrapped, wrapper, created_at"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS study_keys (
    study_key TEXT PRIMARY KEY, key_id TEXT NOT NULL, tenant TEXT NOT NULL,
    wrapped BLOB NOT NULL, wrapper TEXT NOT NULL, created_at TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""


class SqliteKeyTable:
    """A `KeyTable`. Several processes may share the file.

    `synchronous=FULL`: what a write returned for survives power loss. `secure_delete`: a deleted row is
    overwritten in the file; what the disk itself keeps is another matter.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1, "key-table")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Raises Misconfigured: the file is not ours. Raises KeysUnavailable: it cannot be opened."""
        table = cls(path)
        try:
            await asyncio.get_running_loop().run_in_executor(table._pool, table._prepare)
        except BaseException:
            await table.close()
            raise
        return table

    async def get(self, study_key: str) -> WrappedKey | None:
        query = f"SELECT {_COLUMNS} FROM study_keys WHERE study_key = ?"  # noqa: S608 - constants
        found = await self._run(lambda connection: connection.execute(query, (study_key,)).fetchone())
        return None if found is None else _row(found)

    async def create(self, row: WrappedKey) -> WrappedKey:
        def work(connection: sqlite3.Connection) -> tuple[object, ...]:
            connection.execute(
                f"INSERT INTO study_keys ({_COLUMNS}) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING",  # noqa: S608
                _values(row),
            )
            query = f"SELECT {_COLUMNS} FROM study_keys WHERE study_key = ?"  # noqa: S608 - constants
            kept: tuple[object, ...] = connection.execute(query, (row.study_key,)).fetchone()
            return kept

        return _row(await self._run(work, write=True))

    async def replace(self, old: WrappedKey, new: WrappedKey) -> bool:
        statement = (
            "UPDATE study_keys SET key_id=?, tenant=?, wrapped=?, wrapper=?, created_at=?"
            " WHERE study_key=? AND key_id=? AND wrapped=?"
        )
        values = (*_values(new)[1:], old.study_key, old.key_id, old.wrapped)
        return bool(await self._run(lambda c: c.execute(statement, values).rowcount, write=True))

    async def delete(self, study_key: str, key_id: str) -> bool:
        def work(connection: sqlite3.Connection) -> int:
            statement = "DELETE FROM study_keys WHERE study_key=? AND key_id=?"
            return connection.execute(statement, (study_key, key_id)).rowcount

        gone = bool(await self._run(work, write=True))
        if gone:  # the write-ahead log still has the page
            await self._run(
                lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            )
        return gone

    async def list(self) -> AsyncIterator[WrappedKey]:
        query = f"SELECT {_COLUMNS} FROM study_keys WHERE study_key > ? ORDER BY study_key LIMIT ?"  # noqa: S608
        after = ""
        while True:
            bound = (after, PAGE)
            rows = await self._run(lambda c: c.execute(query, bound).fetchall())  # noqa: B023 - awaited here
            for each in rows:
                yield _row(each)
            if len(rows) < PAGE:
                return
            after = rows[-1][0]

    async def count(self) -> int:
        found = await self._run(lambda c: c.execute("SELECT count(*) FROM study_keys").fetchone())
        return int(found[0])

    async def check(self) -> None:
        await self._run(lambda connection: connection.execute("SELECT 1 FROM study_keys LIMIT 1").fetchone())

    async def close(self) -> None:
        """Waits for the calls in hand."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._shutdown)

    async def _run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        if self._closed:
            raise KeysUnavailable("the key table is closed")
        loop = asyncio.get_running_loop()
        return await asyncio.shield(
            loop.run_in_executor(self._pool, lambda: self._execute(work, write=write))
        )

    def _execute(self, work: Callable[[sqlite3.Connection], T], *, write: bool) -> T:
        connection = self._connection
        if connection is None:
            raise KeysUnavailable("the key table is closed")
        try:
            if not write:
                return work(connection)
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _unavailable(error) from None
        else:
            return result
        finally:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def _prepare(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Created by us so that the mode is right from the first byte; SQLite copies it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # check_same_thread: closed by another thread than the pool's.
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA trusted_schema = OFF")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in {0, _FORMAT}:
                raise Misconfigured("the key table was written by another release")
            if not version:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {_FORMAT}")
                connection.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise _unavailable(error) from None

    def _shutdown(self) -> None:
        self._pool.shutdown(wait=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _values(row: WrappedKey) -> tuple[str, str, str, bytes, str, str]:
    return (row.study_key, row.key_id, row.tenant, row.wrapped, row.wrapper, row.created_at.isoformat())


def _row(found: tuple[object, ...]) -> WrappedKey:
    study_key, key_id, tenant, wrapped, wrapper, created_at = found
    return WrappedKey(
        str(study_key),
        str(key_id),
        str(tenant),
        wrapped if isinstance(wrapped, bytes) else b"",
        str(wrapper),
        datetime.fromisoformat(str(created_at)),
    )


def _unavailable(error: Exception) -> KeysUnavailable:
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return KeysUnavailable("the key table cannot be used", cause=name)
