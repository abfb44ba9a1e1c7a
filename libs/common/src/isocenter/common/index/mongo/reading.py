"""Reads: single records, pages of records, and the dump."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from isocenter.common.index import dump
from isocenter.common.index.encoding import bindable
from isocenter.common.index.mongo import documents, manifests
from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import CONFLICTS, INSTANCES, SERIES, STUDIES, below, key
from isocenter.common.index.records import ConflictRecord, InstanceRecord, SeriesRecord, StudyRecord

PAGE = 256
"""Records fetched at once by the iterators: bounds memory, whatever the size of the study."""

InstanceKey = tuple[str, int, str]
StudyKey = tuple[int, str]


async def study(database: Database, name: str, default_issuer: str, *, by_key: bool) -> StudyRecord | None:
    """By Study Instance UID, or also by study key."""
    name = bindable(name)
    wanted = {"$or": [{"_id": name}, {"study_key": name}]} if by_key else {"_id": name}
    found = await database.collection(STUDIES).find_one(wanted)
    return None if found is None else await _study(database, found, default_issuer)


async def _study(database: Database, found: Document, default_issuer: str) -> StudyRecord:
    found, of_version = await manifests.read(database, found)
    return documents.study(found, default_issuer, of_version)


async def series_of(database: Database, study_uid: str) -> list[SeriesRecord]:
    cursor = database.collection(SERIES).find({"study": bindable(study_uid)}).sort("uid", 1)
    return [documents.series(found) for found in await cursor.to_list(None)]


async def conflicts_of(database: Database, study_uid: str) -> list[ConflictRecord]:
    cursor = database.collection(CONFLICTS).find({"_id": below(bindable(study_uid))}).sort("_id", 1)
    return [documents.conflict(found) for found in await cursor.to_list(None)]


async def instances_after(
    database: Database,
    study_uid: str,
    series_uid: str | None,
    sop_uid: str | None,
    after: InstanceKey | None,
) -> tuple[list[InstanceRecord], InstanceKey | None]:
    """The next page in the order of `IndexReader.instances`, and where the one after it begins."""
    study_uid = bindable(study_uid)
    wanted: Document = {}
    if sop_uid is not None:
        wanted["_id"] = key(study_uid, bindable(sop_uid))
    if series_uid is not None:
        wanted["series_id"] = key(study_uid, bindable(series_uid))
    elif sop_uid is None:
        wanted["series_id"] = below(study_uid)
    if after is not None:
        series_id, number, sop = after
        beyond = [
            {"series_id": series_id, "number": number, "sop": {"$gt": sop}},
            {"series_id": series_id, "number": {"$gt": number}},
        ]
        if series_uid is None:
            beyond.append({"series_id": {**below(study_uid), "$gt": series_id}})
        wanted = {"$or": beyond}
    order = [("series_id", 1), ("number", 1), ("sop", 1)]
    found = await database.collection(INSTANCES).find(wanted).sort(order).limit(PAGE).to_list(None)
    last = found[-1] if len(found) == PAGE else None
    following = (last["series_id"], last["number"], last["sop"]) if last is not None else None
    return [documents.instance(each) for each in found], following


async def studies_after(
    database: Database, default_issuer: str, after: StudyKey | None
) -> tuple[list[StudyRecord], StudyKey | None]:
    """The next page of studies, newest arrival first."""
    wanted: Document = {}
    if after is not None:
        received, uid = after
        older = {"last_received_at": {"$lt": received}}
        wanted = {"$or": [{"last_received_at": received, "_id": {"$gt": uid}}, older]}
    order = [("last_received_at", -1), ("_id", 1)]
    found = await database.collection(STUDIES).find(wanted).sort(order).limit(PAGE).to_list(None)
    last = found[-1] if len(found) == PAGE else None
    following = (last["last_received_at"], last["_id"]) if last is not None else None
    return [await _study(database, each, default_issuer) for each in found], following


async def study_uids_after(database: Database, after: str) -> list[str]:
    """The next page, in order of UID."""
    cursor = database.collection(STUDIES).find({"_id": {"$gt": after}}, {"_id": 1}).sort("_id", 1)
    return [found["_id"] for found in await cursor.limit(PAGE).to_list(None)]


async def dump_study(database: Database, study_uid: str) -> AsyncIterator[str]:
    """See `IndexReader.dump` for what is left out and why."""
    found: Any = await database.collection(STUDIES).find_one({"_id": study_uid})
    if found is None:
        return
    yield dump.study_line(await _study(database, found, ""), documents.terms_in(found))
    cursor = database.collection(SERIES).find({"study": study_uid}).sort("uid", 1)
    for series in await cursor.to_list(None):
        yield dump.series_line(documents.series(series), documents.terms_in(series))
    after: InstanceKey | None = None
    while True:
        page, after = await instances_after(database, study_uid, None, None, after)
        for instance in page:
            yield dump.instance_line(instance)
        if after is None:
            break
    for conflict in await conflicts_of(database, study_uid):
        yield dump.conflict_line(study_uid, conflict)
