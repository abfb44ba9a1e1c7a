"""Collections and indexes as code, each index with the query that it serves.

No document grows without bound: instances, conflicts, open transfers, outbox entries and confirmations are
documents of their own; the manifests of a study with very many series are split (`manifests`).

Natural keys are the `_id`: names of one record joined by a space, which no UID and no key of ours contains
and which sorts before every character that they contain. Whatever belongs to a study is the range of `_id`
that begins with its UID.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from isocenter.common.errors import IndexUnavailable, Misconfigured
from isocenter.common.index.mongo.driver import Database, unhurried

VERSION: Final = 1

STUDIES: Final = "studies"
SERIES: Final = "series"
INSTANCES: Final = "instances"
CONFLICTS: Final = "conflicts"
TRANSFERS: Final = "transfers"
MANIFESTS: Final = "manifests"
CONFIRMATIONS: Final = "confirmations"
OUTBOX: Final = "outbox"
COMMITMENTS: Final = "commitments"
MARKS: Final = "marks"

INDEXES: Final[Mapping[str, tuple[IndexModel, ...]]] = {
    STUDIES: (
        # find_study by key; close_transfer; settle_now
        IndexModel([("study_key", ASCENDING)], name="study_key", unique=True),
        # search without a condition, `studies`, and the order of every search
        IndexModel([("last_received_at", DESCENDING), ("_id", ASCENDING)], name="newest"),
        # search: a value (then in the order of the result), a prefix, a range; `terms` are `path=text`
        IndexModel(
            [("terms", ASCENDING), ("last_received_at", DESCENDING), ("_id", ASCENDING)], name="terms"
        ),
        # claim_due, backlog
        IndexModel(
            [
                ("settle_at", ASCENDING),
                ("study_key", ASCENDING),
                ("lease_until", ASCENDING),
                ("latest_settle_at", ASCENDING),
            ],
            name="due",
            partialFilterExpression={"state": "receiving"},
        ),
    ),
    SERIES: (
        # list_series; search: the series of a study in the order of the result
        IndexModel([("study", ASCENDING), ("uid", ASCENDING)], name="of_study", unique=True),
        # search by an attribute of the series alone
        IndexModel([("terms", ASCENDING)], name="terms"),
    ),
    INSTANCES: (
        # instances; search: the instances of a series
        IndexModel([("series_id", ASCENDING), ("number", ASCENDING), ("sop", ASCENDING)], name="of_series"),
        # search by SOP Instance UID alone
        IndexModel([("sop", ASCENDING)], name="sop"),
    ),
    CONFLICTS: (),
    TRANSFERS: (),
    MANIFESTS: (),
    CONFIRMATIONS: (),
    OUTBOX: (
        # pending_outbox
        IndexModel([("position", ASCENDING), ("_id", ASCENDING)], name="position"),
    ),
    COMMITMENTS: (
        # create_commitment, get_commitment
        IndexModel(
            [("requester", ASCENDING), ("transaction_uid", ASCENDING)], name="transaction", unique=True
        ),
        # claim_commitments
        IndexModel(
            [("due_at", ASCENDING), ("_id", ASCENDING)],
            name="due",
            partialFilterExpression={"open": True},
        ),
        # commitments, purge_commitments
        IndexModel([("requested_at", DESCENDING), ("_id", ASCENDING)], name="newest"),
    ),
    MARKS: (),
}

_RECORDS: Final = (STUDIES, SERIES, INSTANCES, CONFLICTS, TRANSFERS, MANIFESTS, CONFIRMATIONS)
"""What a rebuild empties. Events that wait in the outbox were decided, requests for storage commitment were
accepted, and neither is in any object: they stay.
"""

_SCHEMA, _REBUILDING = "schema", "rebuilding"


def key(*names: str | int) -> str:
    """The natural key of a record."""
    return " ".join(str(name) for name in names)


def below(*names: str | int) -> dict[str, str]:
    """The range of natural keys that begin with these names."""
    begin = key(*names)
    return {"$gt": f"{begin} ", "$lt": f"{begin}!"}


async def ensure_indexes(database: Database) -> None:
    """Creates what is missing; changes nothing that is there. Several processes may do so at once."""
    with unhurried():
        existing = set(await database.names())
        for name, indexes in INDEXES.items():
            if name not in existing:
                await database.create(name)
            if indexes:
                await database.collection(name).create_indexes(list(indexes))


async def prepare(database: Database) -> None:
    """Raises Misconfigured: another release wrote the index, or the database is another program's."""
    marks = database.collection(MARKS)
    found = await marks.find_one({"_id": _SCHEMA})
    if found is None:
        if await database.collection(STUDIES).find_one({}, {"_id": 1}) is not None:
            raise Misconfigured("the database of the index is another program's")
        await ensure_indexes(database)
        first = {"$setOnInsert": {"version": VERSION}}
        try:
            await marks.update_one({"_id": _SCHEMA}, first, upsert=True)
        except DuplicateKeyError:  # another process was as quick
            return
    elif found.get("version") == VERSION:
        await ensure_indexes(database)
    else:
        raise Misconfigured(
            "another release wrote the index: run `isocenter reindex`", version=str(found.get("version"))
        )


class RebuildFence:
    """Until a rebuild is whole, only the object that began it last may write.

    Transactions read the mark in their own snapshot. Dropping a collection waits for the transactions that
    touched it, and one that began before the drop cannot write to what was made anew: what was begun before
    the mark is either gone or never written.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._token = secrets.token_hex(8)

    async def check(self, session: Any = None) -> None:
        """Raises IndexUnavailable: another object rebuilds, or began to and did not finish."""
        mark = await self._database.collection(MARKS).find_one({"_id": _REBUILDING}, session=session)
        if mark is not None and mark["owner"] != self._token:
            raise IndexUnavailable(
                "a rebuild has not finished: wait for it, or run `isocenter reindex` again"
            )

    async def begin(self) -> None:
        mark = {"$set": {"owner": self._token}}
        await self._database.collection(MARKS).update_one({"_id": _REBUILDING}, mark, upsert=True)
        with unhurried():
            for name in _RECORDS:
                await self._database.drop(name)
        await ensure_indexes(self._database)

    async def end(self) -> None:
        await self.check()
        await self._database.collection(MARKS).delete_one({"_id": _REBUILDING, "owner": self._token})
