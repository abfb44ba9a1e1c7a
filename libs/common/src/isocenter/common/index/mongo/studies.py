"""The document of a study as the point where everything about it meets."""

from __future__ import annotations

from typing import Any

from pymongo import ReturnDocument

from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import STUDIES


async def hold(
    database: Database, session: Any, wanted: Document, fresh: Document | None = None
) -> Document | None:
    """The study, held until the transaction ends: whoever else changes it in between, one of the two begins
    anew. With `fresh` it is created where it is missing.

    First thing in a transaction, so that those who meet find out before they have done anything.
    """
    change: Document = {"$inc": {"touched": 1}}
    if fresh is not None:
        change["$setOnInsert"] = fresh
    found: Document | None = await database.collection(STUDIES).find_one_and_update(
        wanted, change, upsert=fresh is not None, return_document=ReturnDocument.AFTER, session=session
    )
    return found


def next_position(study: Document, now: int) -> int:
    """Where the next event of the study stands in the outbox: by time, and behind every earlier one of the
    study even where the clocks of two writers differ.
    """
    return max(int(study["position"]) + 1, now)
