"""`apply`: a batch of instances of one study becomes documents, in one transaction.

The transaction begins by holding the study's document, so two indexers with instances of one study follow
each other. What is known already is read before anything is written: a batch that brings nothing new leaves
no write behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isocenter.common.errors import Permanent
from isocenter.common.events.models import SettleReason
from isocenter.common.index.encoding import micros
from isocenter.common.index.mongo import documents, outbox
from isocenter.common.index.mongo.aggregates import refresh
from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import CONFLICTS, INSTANCES, SERIES, STUDIES, TRANSFERS, below, key
from isocenter.common.index.mongo.studies import hold, next_position
from isocenter.common.index.ports import Applied, Arrival, OutboxBuilder
from isocenter.common.index.records import ConflictRecord, InstanceRecord, SettleState


@dataclass(frozen=True, slots=True)
class _Known:
    object_key: str
    received_at: int
    series_uid: str
    series_key: str


@dataclass(slots=True)
class _Outcome:
    """What a batch does, decided before anything is written.

    Attributes:
        current: SOP Instance UID -> the instance to be written for it, if it is not the one that is there.
        replaced: SOP Instance UIDs whose stored instance gives way.
        conflicts: as they were found; `current_object_key` is what it was at that moment.
        replaced_in: series that lost an instance, or got another object for one.
    """

    new: list[InstanceRecord] = field(default_factory=list)
    current: dict[str, InstanceRecord] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    duplicates: int = 0
    conflicts: list[ConflictRecord] = field(default_factory=list)
    replaced_in: set[str] = field(default_factory=set)


def names_of(batch: Sequence[InstanceRecord]) -> tuple[str, str]:
    """Study Instance UID and study key. Raises ValueError unless the batch is of one study."""
    studies = {(record.study_instance_uid, record.study_key) for record in batch}
    if len(studies) != 1:
        raise ValueError("a batch holds instances of one study")
    for record in batch:
        uids = record.study_instance_uid, record.series_instance_uid, record.sop_instance_uid
        if any(" " in uid for uid in uids):
            raise Permanent("a UID holds a space", instance_key=record.instance_key)
    ((study_uid, study_key),) = studies
    return study_uid, study_key


async def apply(
    database: Database,
    session: Any,
    batch: Sequence[InstanceRecord],
    arrival: Arrival,
    build_outbox: OutboxBuilder,
) -> tuple[bool, Applied]:
    study_uid, study_key = names_of(batch)
    fresh = documents.new_study(study_key, micros(batch[0].received_at), micros(arrival.latest_settle_at))
    study = await hold(database, session, {"_id": study_uid}, fresh)
    if study is None:
        raise Permanent("the study could not be created", study_key=study_key)
    outcome = await _decide(database, session, study_uid, batch, arrival)
    changed = bool(outcome.new or outcome.replaced_in)
    reopened = None
    if changed and study["state"] == SettleState.SETTLED.value:
        reopened = int(study["version"])
    applied = Applied(
        new=tuple(record.sop_instance_uid for record in outcome.new),
        duplicates=outcome.duplicates,
        conflicts=tuple(outcome.conflicts),
        reopened_version=reopened,
    )
    if not changed and not outcome.conflicts:
        return False, applied
    series = await _write(database, session, study_uid, outcome)
    change: Document = {"conflicts": study["conflicts"] + len(outcome.conflicts)}
    if changed:
        change |= await refresh(database, session, study, outcome.new, outcome.replaced_in, series)
        change |= _timer(study, arrival, reopened=reopened is not None)
        if arrival.transfer_id is not None:
            transfer = {"_id": key(study_uid, study["epoch"], arrival.transfer_id)}
            epoch = {"$setOnInsert": {"epoch": study["epoch"]}}
            await database.collection(TRANSFERS).update_one(transfer, epoch, upsert=True, session=session)
    entries = build_outbox(study_key, applied)
    if entries:
        position = next_position(study, micros(arrival.now))
        await outbox.add(database, session, entries, position)
        change["position"] = position + len(entries) - 1
    await database.collection(STUDIES).update_one({"_id": study_uid}, {"$set": change}, session=session)
    return True, applied


async def _decide(
    database: Database, session: Any, study_uid: str, batch: Sequence[InstanceRecord], arrival: Arrival
) -> _Outcome:
    instance_ids = [key(study_uid, record.sop_instance_uid) for record in batch]
    fields = {"sop": 1, "object_key": 1, "received_at": 1, "series_id": 1, "series_key": 1}
    cursor = database.collection(INSTANCES).find({"_id": {"$in": instance_ids}}, fields, session=session)
    known = {
        each["sop"]: _Known(
            each["object_key"],
            each["received_at"],
            each["series_id"].partition(" ")[2],
            each["series_key"],
        )
        for each in await cursor.to_list(None)
    }
    loser_ids = [key(study_uid, record.sop_instance_uid, record.object_key) for record in batch]
    losers: set[str] = set()
    if known:  # an object lost to another one, and that one, or its successor, is here
        cursor = database.collection(CONFLICTS).find({"_id": {"$in": loser_ids}}, {"_id": 1}, session=session)
        losers = {each["_id"] for each in await cursor.to_list(None)}
    stored = set(known)
    outcome = _Outcome()
    for record, loser_id in zip(batch, loser_ids, strict=True):
        sop = record.sop_instance_uid
        current = known.get(sop)
        if loser_id in losers or (current and current.object_key == record.object_key):
            outcome.duplicates += 1
            continue
        received_at = micros(record.received_at)
        if current and (current.received_at, current.object_key) <= (received_at, record.object_key):
            losers.add(loser_id)
            loser = record.series_key, record.object_key
            outcome.conflicts.append(_conflict(record, current.object_key, loser, arrival))
            continue
        if current:
            losers.add(key(study_uid, sop, current.object_key))
            outcome.replaced_in |= {current.series_uid, record.series_instance_uid}
            loser = current.series_key, current.object_key
            outcome.conflicts.append(_conflict(record, record.object_key, loser, arrival))
            if sop in stored:
                outcome.replaced.add(sop)
        else:
            outcome.new.append(record)
        outcome.current[sop] = record
        known[sop] = _Known(record.object_key, received_at, record.series_instance_uid, record.series_key)
    return outcome


def _conflict(
    record: InstanceRecord, current: str, loser: tuple[str, str], arrival: Arrival
) -> ConflictRecord:
    """`loser`: series key and object key of the object that is not, or no longer, the current one."""
    return ConflictRecord(
        sop_instance_uid=record.sop_instance_uid,
        study_key=record.study_key,
        series_key=loser[0],
        instance_key=record.instance_key,
        current_object_key=current,
        conflicting_object_key=loser[1],
        detected_at=arrival.now,
    )


async def _write(database: Database, session: Any, study_uid: str, outcome: _Outcome) -> list[Document]:
    """Returns the series that it touched, as they were: those that are new with no instance."""
    instances, conflicts = database.collection(INSTANCES), database.collection(CONFLICTS)
    if outcome.replaced:
        gone = {"_id": {"$in": [key(study_uid, sop) for sop in sorted(outcome.replaced)]}}
        await instances.delete_many(gone, session=session)
    if outcome.current:
        await instances.insert_many(
            [documents.new_instance(record) for record in outcome.current.values()], session=session
        )
    for sop in sorted(outcome.replaced):
        now_current = {"current_object_key": outcome.current[sop].object_key}
        await conflicts.update_many({"_id": below(study_uid, sop)}, {"$set": now_current}, session=session)
    if outcome.conflicts:
        last = {sop: record.object_key for sop, record in outcome.current.items()}
        await conflicts.insert_many(
            [
                documents.new_conflict(
                    study_uid,
                    replace(
                        each, current_object_key=last.get(each.sop_instance_uid, each.current_object_key)
                    ),
                )
                for each in outcome.conflicts
            ],
            session=session,
        )
    by_id = {key(study_uid, record.series_instance_uid): record for record in outcome.current.values()}
    touched = sorted({*by_id, *(key(study_uid, uid) for uid in outcome.replaced_in)})
    if not touched:
        return []
    cursor = database.collection(SERIES).find({"_id": {"$in": touched}}, session=session)
    series: list[Document] = await cursor.to_list(None)
    there = {each["_id"] for each in series}
    missing = [documents.new_series(by_id[each]) for each in sorted(by_id) if each not in there]
    if missing:
        await database.collection(SERIES).insert_many(missing, session=session)
    return series + missing


def _timer(study: Document, arrival: Arrival, *, reopened: bool) -> Document:
    latest = micros(arrival.latest_settle_at) if reopened else study["latest_settle_at"]
    settle_at = micros(arrival.settle_at)
    reason = SettleReason.MAX_WAIT if latest < settle_at else SettleReason.QUIET
    change: Document = {
        "state": SettleState.RECEIVING.value,
        "revision": study["revision"] + 1,
        "settle_at": min(settle_at, latest),
        "settle_reason": reason.value,
        "latest_settle_at": latest,
        "lease_until": 0,
    }
    if arrival.traceparent is not None:
        change["traceparent"] = arrival.traceparent
    return change
