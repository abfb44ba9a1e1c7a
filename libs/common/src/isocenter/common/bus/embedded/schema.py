"""Tables of the log file, and connections to it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from isocenter.common.errors import Misconfigured

SCHEMA_VERSION = 1
OFFSET_BITS = 40
"""A record's rowid is (partition id << 40) | offset: one B-tree, each partition contiguous in it."""

_DDL = f"""
CREATE TABLE IF NOT EXISTS topics(
    name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, retention_ms INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partitions(
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, part INTEGER NOT NULL,
    first INTEGER NOT NULL DEFAULT 0, next INTEGER NOT NULL DEFAULT 0, UNIQUE(topic, part));
CREATE TABLE IF NOT EXISTS records(
    id INTEGER PRIMARY KEY, ts INTEGER NOT NULL, key BLOB, value BLOB, headers TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS offsets(
    grp TEXT NOT NULL, topic TEXT NOT NULL, part INTEGER NOT NULL, off INTEGER NOT NULL,
    PRIMARY KEY(grp, topic, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subscriptions(
    grp TEXT NOT NULL, topic TEXT NOT NULL, PRIMARY KEY(grp, topic)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parked(
    grp TEXT NOT NULL, key BLOB NOT NULL, ident TEXT NOT NULL, PRIMARY KEY(grp, key, ident)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests(
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, args TEXT NOT NULL, result TEXT);
CREATE TABLE IF NOT EXISTS replayed(
    topic TEXT NOT NULL, part INTEGER NOT NULL, off INTEGER NOT NULL, PRIMARY KEY(topic, part, off))
    WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
"""


def open_writer(path: Path, *, max_bytes: int | None, busy_seconds: float = 5.0) -> sqlite3.Connection:
    """The one connection that writes. Every COMMIT is on the disk when it returns (WAL, synchronous=FULL).

    Raises:
        Misconfigured: the file was written by a newer version of the platform.
    """
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        connection.close()
        raise Misconfigured("the event log was written by a newer version", schema=version)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA journal_size_limit={64 * 1024 * 1024}")
    if max_bytes is not None:
        page_size = int(connection.execute("PRAGMA page_size").fetchone()[0])
        connection.execute(f"PRAGMA max_page_count={max(1, max_bytes // page_size)}")
    if version < SCHEMA_VERSION:
        connection.executescript(_DDL)
        _sync_directory(path.parent)
    return connection


def open_reader(path: Path, *, busy_seconds: float = 5.0) -> sqlite3.Connection:
    """A connection that cannot write. WAL lets it read while another process writes.

    Raises:
        sqlite3.OperationalError: there is no log at this path.
    """
    uri = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)


def pack_headers(headers: Sequence[tuple[str, bytes | None]]) -> str:
    """Headers as JSON text; values byte for byte (Latin-1), a null value stays null."""
    return json.dumps(
        [(name, None if value is None else value.decode("latin-1")) for name, value in headers],
        separators=(",", ":"),
    )


def unpack_headers(text: str) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(
        (name, None if value is None else value.encode("latin-1")) for name, value in json.loads(text)
    )


def _sync_directory(directory: Path) -> None:
    """Makes the new file's directory entry durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
