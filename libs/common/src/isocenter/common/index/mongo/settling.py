"""Study revisions: timers, leases and the one transaction that settles."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo import ReturnDocument

from isocenter.common.events.models import SettleReason
from isocenter.common.index.encoding import micros, moment
from isocenter.common.index.mongo import manifests, outbox
from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import (
    CONFIRMATIONS,
    OUTBOX,
    STUDIES,
    TRANSFERS,
    below,
    key,
)
from isocenter.common.index.mongo.studies import hold, next_position
from isocenter.common.index.ports import Backlog, DueStudy, RestoredRevision, Settlement
from isocenter.common.index.records import SettleState

_RECEIVING = SettleState.RECEIVING.value
_REST: Document = {
    "state": SettleState.SETTLED.value,
    "settle_at": None,
    "settle_reason": None,
    "lease_until": 0,
}


async def close_transfer(
    database: Database, session: Any, study_key: str, settle_at: datetime, transfer_id: str | None
) -> tuple[bool, bool]:
    study = await hold(database, session, {"study_key": study_key, "state": _RECEIVING})
    if study is None:
        return False, False
    transfers = database.collection(TRANSFERS)
    if transfer_id is not None:
        await transfers.delete_one({"_id": key(study["_id"], study["epoch"], transfer_id)}, session=session)
    others = await transfers.find_one({"_id": below(study["_id"], study["epoch"])}, session=session)
    if others is not None or study["settle_at"] <= micros(settle_at):
        return True, False
    change = {"settle_at": micros(settle_at), "settle_reason": SettleReason.TRANSFER_CLOSED.value}
    await database.collection(STUDIES).update_one({"_id": study["_id"]}, {"$set": change}, session=session)
    return True, True


async def settle_now(database: Database, study_key: str, now: datetime) -> bool:
    found = await database.collection(STUDIES).update_one(
        {"study_key": study_key, "state": _RECEIVING, "instances": {"$gt": 0}},
        {"$min": {"settle_at": micros(now)}, "$set": {"settle_reason": SettleReason.MANUAL.value}},
    )
    return bool(found.matched_count)


async def claim_due(database: Database, now: datetime, lease_seconds: float, limit: int) -> list[DueStudy]:
    """One atomic update per study: of two settlers that see it due, one gets it."""
    if limit <= 0:
        return []
    at, until = micros(now), micros(now + timedelta(seconds=lease_seconds))
    due = {"state": _RECEIVING, "settle_at": {"$lte": at}, "lease_until": {"$lte": at}}
    order = [("settle_at", 1), ("study_key", 1)]
    studies = database.collection(STUDIES)
    claimed = []
    for candidate in await studies.find(due, {"_id": 1}).sort(order).limit(limit).to_list(None):
        study = await studies.find_one_and_update(
            {"_id": candidate["_id"], **due},
            {"$set": {"lease_until": until}},
            return_document=ReturnDocument.AFTER,
        )
        if study is not None:
            claimed.append(study)
    return [_due(study) for study in sorted(claimed, key=lambda each: (each["settle_at"], each["study_key"]))]


def _due(study: Document) -> DueStudy:
    return DueStudy(
        study_instance_uid=study["_id"],
        study_key=study["study_key"],
        version=study["version"],
        revision=study["revision"],
        reason=SettleReason(study["settle_reason"]),
        traceparent=study["traceparent"],
        due_at=moment(study["settle_at"]),
    )


async def settle(
    database: Database, session: Any, due: DueStudy, settlement: Settlement
) -> tuple[bool, bool]:
    uid = due.study_instance_uid
    claimed = {"_id": uid, "state": _RECEIVING, "version": due.version, "revision": due.revision}
    study = await hold(database, session, claimed)
    if study is None:
        return False, False
    position = next_position(study, micros(settlement.settled_at))
    written = await manifests.write(database, session, uid, settlement.version, settlement.manifests)
    change = {
        **_REST,
        **written,
        "version": settlement.version,
        "epoch": study["epoch"] + 1,
        "settled_at": micros(settlement.settled_at),
        "settled_reason": settlement.reason.value,
        "position": position,
    }
    await database.collection(STUDIES).update_one({"_id": uid}, {"$set": change}, session=session)
    await outbox.add(database, session, [settlement.entry], position)
    if settlement.confirmation is not None:
        await database.collection(CONFIRMATIONS).update_one(
            {"_id": settlement.confirmation},
            {"$setOnInsert": {"event_id": settlement.entry.event_id}},
            upsert=True,
            session=session,
        )
    return True, True


async def forget_transfers(database: Database, study_uid: str) -> None:
    """Those of versions that have settled: nobody reads them any more."""
    study = await database.collection(STUDIES).find_one({"_id": study_uid}, {"epoch": 1})
    if study is not None:
        old = {"_id": below(study_uid), "epoch": {"$lt": study["epoch"]}}
        await database.collection(TRANSFERS).delete_many(old)


async def pending_confirmations(database: Database, limit: int) -> list[str]:
    if limit <= 0:
        return []
    waiting = {"from": OUTBOX, "localField": "event_id", "foreignField": "_id", "as": "waiting"}
    found = await database.aggregate(
        CONFIRMATIONS,
        [
            {"$sort": {"_id": 1}},
            {"$lookup": waiting},
            {"$match": {"waiting": []}},
            {"$limit": limit},
            {"$project": {"_id": 1}},
        ],
    )
    return [each["_id"] for each in found]


async def confirmations_written(database: Database, object_keys: Sequence[str]) -> None:
    if object_keys:
        await database.collection(CONFIRMATIONS).delete_many({"_id": {"$in": list(object_keys)}})


async def restore(
    database: Database, session: Any, study_uid: str, restored: RestoredRevision, *, settled: bool
) -> tuple[bool, None]:
    study = await hold(database, session, {"_id": study_uid})
    if study is None:
        return False, None
    written = await manifests.write(database, session, study_uid, restored.version, restored.manifests)
    change = {
        **(_REST if settled else {}),
        **written,
        "version": restored.version,
        "epoch": study["epoch"] + settled,
        "settled_at": micros(restored.settled_at),
        "settled_reason": restored.reason.value,
    }
    await database.collection(STUDIES).update_one({"_id": study_uid}, {"$set": change}, session=session)
    return True, None


async def backlog(database: Database) -> Backlog:
    waiting = await database.aggregate(
        STUDIES,
        [
            {"$match": {"state": _RECEIVING, "settle_at": {"$gte": 0}}},
            {
                "$group": {
                    "_id": None,
                    "receiving": {"$sum": 1},
                    "due": {"$min": "$settle_at"},
                    "latest": {"$min": "$latest_settle_at"},
                }
            },
        ],
    )
    studies: Document = waiting[0] if waiting else {"receiving": 0, "due": None, "latest": None}
    first = await outbox.pending(database, 1)
    return Backlog(
        studies["receiving"],
        await database.collection(OUTBOX).count_documents({}) if first else 0,
        settle_at=None if studies["due"] is None else moment(studies["due"]),
        latest_settle_at=None if studies["latest"] is None else moment(studies["latest"]),
        outbox_since=first[0].decided_at if first else None,
    )
