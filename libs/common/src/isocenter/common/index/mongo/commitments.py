"""Requests for storage commitment.

References are one compressed value: 100,000 of them stay below the limit of a document, and nobody searches
in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from bson import Binary
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from isocenter.common.index.commitments import OPEN, Commitment, CommitmentState, Located, Step
from isocenter.common.index.encoding import (
    bindable,
    failures_from,
    micros,
    moment,
    pack_references,
    unpack_references,
)
from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import COMMITMENTS, CONFLICTS, INSTANCES, below


async def create(database: Database, commitment: Commitment) -> Commitment:
    document = {
        "_id": commitment.id,
        "requester": commitment.requester,
        "transaction_uid": commitment.transaction_uid,
        "references": Binary(pack_references(commitment.references)),
        "requested_at": micros(commitment.requested_at),
        "state": commitment.state.value,
        "open": True,
        "failures": {},
        "checked_at": None,
        "attempts": 0,
        "revision": 0,
        "due_at": micros(commitment.requested_at),
        "lease_until": 0,
    }
    try:
        await database.collection(COMMITMENTS).insert_one(document)
    except DuplicateKeyError:
        kept = await get(database, commitment.requester, commitment.transaction_uid)
        return commitment if kept is None else kept
    return commitment


async def get(database: Database, requester: str, transaction_uid: str) -> Commitment | None:
    wanted = {"requester": bindable(requester), "transaction_uid": bindable(transaction_uid)}
    found = await database.collection(COMMITMENTS).find_one(wanted)
    return None if found is None else _commitment(found)


async def claim(database: Database, now: datetime, lease_seconds: float, limit: int) -> list[Commitment]:
    """One atomic update per request: of two replicas that see it due, one gets it."""
    if limit <= 0:
        return []
    at = micros(now)
    due = {"open": True, "due_at": {"$lte": at}, "lease_until": {"$lte": at}}
    requests = database.collection(COMMITMENTS)
    order = [("due_at", 1), ("_id", 1)]
    claimed = []
    for candidate in await requests.find(due, {"_id": 1}).sort(order).limit(limit).to_list(None):
        found = await requests.find_one_and_update(
            {"_id": candidate["_id"], **due},
            {
                "$set": {"lease_until": micros(now + timedelta(seconds=lease_seconds))},
                "$inc": {"revision": 1},
            },
            return_document=ReturnDocument.AFTER,
        )
        if found is not None:
            claimed.append(_commitment(found))
    return claimed


async def renew(database: Database, commitment: Commitment, until: datetime) -> bool:
    held = {"_id": commitment.id, "revision": commitment.revision, "open": True}
    changed = await database.collection(COMMITMENTS).update_one(
        held, {"$set": {"lease_until": micros(until)}}
    )
    return bool(changed.matched_count)


async def advance(database: Database, commitment: Commitment, step: Step) -> bool:
    change = {
        "state": step.state.value,
        "open": step.state in OPEN,
        "due_at": micros(step.due_at),
        "attempts": step.attempts,
        "failures": {str(position): reason for position, reason in step.failures.items()},
        "checked_at": None if step.checked_at is None else micros(step.checked_at),
        "lease_until": 0,
    }
    changed = await database.collection(COMMITMENTS).update_one(
        {"_id": commitment.id, "revision": commitment.revision}, {"$set": change}
    )
    return bool(changed.matched_count)


async def repeat(database: Database, commitment: Commitment, now: datetime) -> bool:
    at = micros(now)
    change = {
        "state": CommitmentState.CHECKING.value,
        "open": True,
        "requested_at": at,
        "due_at": at,
        "attempts": 0,
        "failures": {},
        "checked_at": None,
        "lease_until": 0,
    }
    changed = await database.collection(COMMITMENTS).update_one(
        {"_id": commitment.id, "open": False}, {"$set": change, "$inc": {"revision": 1}}
    )
    return bool(changed.matched_count)


async def purge(database: Database, before: datetime) -> int:
    old = {"requested_at": {"$lt": micros(before)}, "open": False}
    gone = await database.collection(COMMITMENTS).delete_many(old)
    return int(gone.deleted_count)


async def newest(database: Database, limit: int) -> list[Commitment]:
    if limit <= 0:
        return []
    order = [("requested_at", -1), ("_id", 1)]
    found = await database.collection(COMMITMENTS).find({}).sort(order).limit(limit).to_list(None)
    return [_commitment(each) for each in found]


async def locate(database: Database, sop_instance_uids: Sequence[str]) -> list[Located]:
    wanted = [bindable(uid) for uid in sop_instance_uids]
    fields = ("series_id", "sop", "sop_class", "study_key", "instance_key", "object_key", "content_digest")
    current = (
        await database.collection(INSTANCES)
        .find({"sop": {"$in": wanted}}, dict.fromkeys(fields, 1))
        .to_list(None)
    )
    located = [
        Located(
            each["series_id"].partition(" ")[0],
            each["sop"],
            each["sop_class"],
            each["study_key"],
            each["instance_key"],
            each["object_key"],
            each["content_digest"],
        )
        for each in current
    ]
    return located + await _conflicting(database, located)


async def _conflicting(database: Database, located: Sequence[Located]) -> list[Located]:
    """By the keys of the current objects: conflicts are filed under study and instance, and are few."""
    ranges: list[Document] = []
    studies: dict[tuple[str, str], str] = {}
    for each in located:
        ranges.append({"_id": below(each.study_instance_uid, each.sop_instance_uid)})
        studies[each.study_key, each.sop_instance_uid] = each.study_instance_uid
    if not ranges:
        return []
    found: list[Any] = await database.collection(CONFLICTS).find({"$or": ranges}).to_list(None)
    return [
        Located(
            studies[each["study_key"], each["sop"]],
            each["sop"],
            "",
            each["study_key"],
            each["instance_key"],
            each["conflicting_object_key"],
            "",
        )
        for each in found
    ]


def _commitment(document: Document) -> Commitment:
    checked_at = document["checked_at"]
    return Commitment(
        id=document["_id"],
        requester=document["requester"],
        transaction_uid=document["transaction_uid"],
        references=unpack_references(document["references"]),
        requested_at=moment(document["requested_at"]),
        state=CommitmentState(document["state"]),
        failures=failures_from(document["failures"]),
        checked_at=None if checked_at is None else moment(checked_at),
        attempts=document["attempts"],
        revision=document["revision"],
    )
