"""Events waiting to be published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pymongo import UpdateOne

from isocenter.common.index.mongo import documents
from isocenter.common.index.mongo.driver import Database
from isocenter.common.index.mongo.schema import OUTBOX
from isocenter.common.index.records import OutboxEntry


async def add(database: Database, session: Any, entries: Sequence[OutboxEntry], first: int) -> None:
    """The same id is the same event: it waits once. Positions count up from `first`."""
    if entries:
        await database.collection(OUTBOX).bulk_write(
            [
                UpdateOne(
                    {"_id": entry.event_id},
                    {"$setOnInsert": documents.new_entry(entry, position)},
                    upsert=True,
                )
                for position, entry in enumerate(entries, first)
            ],
            session=session,
        )


async def pending(database: Database, limit: int) -> list[OutboxEntry]:
    if limit <= 0:
        return []
    order = [("position", 1), ("_id", 1)]
    found = await database.collection(OUTBOX).find({}).sort(order).limit(limit).to_list(None)
    return [documents.entry(each) for each in found]


async def published(database: Database, event_ids: Sequence[str]) -> None:
    if event_ids:
        await database.collection(OUTBOX).delete_many({"_id": {"$in": list(event_ids)}})
