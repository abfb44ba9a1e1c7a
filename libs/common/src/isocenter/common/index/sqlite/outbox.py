"""Events waiting to be published."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from isocenter.common.index.encoding import to_json
from isocenter.common.index.records import OutboxEntry
from isocenter.common.index.sqlite import rows


def add(connection: sqlite3.Connection, entries: Iterable[OutboxEntry]) -> None:
    """The same id is the same event: it waits once."""
    connection.executemany(
        "INSERT INTO outbox (event_id, topic, key, headers, body) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (event_id) DO NOTHING",
        [(entry.event_id, entry.topic, entry.key, to_json(entry.headers), entry.body) for entry in entries],
    )


def pending(connection: sqlite3.Connection, limit: int) -> list[OutboxEntry]:
    found = connection.execute("SELECT * FROM outbox ORDER BY position LIMIT ?", (limit,))
    return [rows.outbox(row) for row in found]


def published(connection: sqlite3.Connection, event_ids: Sequence[str]) -> None:
    connection.execute(
        "DELETE FROM outbox WHERE event_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(event_ids)),),
    )
