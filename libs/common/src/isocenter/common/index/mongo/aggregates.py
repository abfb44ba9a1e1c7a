"""What a study and a series show: the attributes and counts of the current instances below them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pymongo import UpdateOne

from isocenter.common.index import attributes as kept
from isocenter.common.index.encoding import identity_of, micros, of_level, to_json, unpack
from isocenter.common.index.merge import Sources, merge, order_of
from isocenter.common.index.mongo import documents
from isocenter.common.index.mongo.driver import Database, Document
from isocenter.common.index.mongo.schema import INSTANCES, SERIES, below
from isocenter.common.index.query import Level
from isocenter.common.index.records import DicomJson, InstanceRecord
from isocenter.common.index.terms import terms_of

_BATCH = 500
Incoming = list[tuple[str, DicomJson]]


async def refresh(
    database: Database,
    session: Any,
    study: Document,
    new: Sequence[InstanceRecord],
    replaced_in: set[str],
    touched: Sequence[Document],
) -> Document:
    """Brings the series that the batch touched up to date; returns what changes in the study.

    New instances are added to what is there. Only where an object gave way to another is everything read
    again.
    """
    uid = study["_id"]
    by_series: dict[str, list[InstanceRecord]] = {}
    for record in new:
        by_series.setdefault(record.series_instance_uid, []).append(record)
    created, gained, lost = 0, set(study["modalities"]), False
    updates: list[UpdateOne] = []
    for series in touched:
        if series["uid"] in replaced_in:
            change = await _recounted(database, session, series)
            if change is None:
                continue
        else:
            change = _grown(series, by_series[series["uid"]])
            created += series["instances"] == 0
        modalities: list[str] = {**series, **change}["modalities"]
        lost |= not set(series["modalities"]) <= set(modalities)
        gained |= set(modalities)
        updates.append(UpdateOne({"_id": series["_id"]}, {"$set": change}))
    if updates:
        await database.collection(SERIES).bulk_write(updates, session=session)
    if replaced_in:
        return await _restudied(database, session, uid)
    received = [micros(record.received_at) for record in new]
    if lost:
        gained = await _modalities(database, session, uid)
    incoming = [(_order(record), of_level(record, Level.STUDY)) for record in new]
    merged = merge(json.loads(study["attributes"]), json.loads(study["sources"]), incoming)
    return {
        **study_fields(study, merged, sorted(gained)),
        "series": study["series"] + created,
        "instances": study["instances"] + len(new),
        "size_bytes": study["size_bytes"] + sum(record.size_bytes for record in new),
        "first_received_at": min(study["first_received_at"], *received),
        "last_received_at": max(study["last_received_at"], *received),
    }


def _grown(series: Document, records: list[InstanceRecord]) -> Document:
    incoming = [(_order(record), of_level(record, Level.SERIES)) for record in records]
    merged = merge(json.loads(series["attributes"]), json.loads(series["sources"]), incoming)
    return {
        **series_fields(merged),
        "instances": series["instances"] + len(records),
        "size_bytes": series["size_bytes"] + sum(record.size_bytes for record in records),
    }


async def _recounted(database: Database, session: Any, series: Document) -> Document | None:
    """From its instances as they are now; None, and the series is gone, if there are none."""
    reader = _Reader(Level.SERIES)
    await reader.read(database, session, {"series_id": series["_id"]})
    if not reader.instances:
        await database.collection(SERIES).delete_one({"_id": series["_id"]}, session=session)
        return None
    return {
        **series_fields((reader.document, reader.sources, True)),
        "instances": reader.instances,
        "size_bytes": reader.size_bytes,
    }


async def _restudied(database: Database, session: Any, uid: str) -> Document:
    reader = _Reader(Level.STUDY)
    await reader.read(database, session, {"_id": below(uid)})
    modalities = sorted(await _modalities(database, session, uid))
    series = await database.collection(SERIES).count_documents({"study": uid}, session=session)
    return {
        **study_fields({"modalities": None}, (reader.document, reader.sources, True), modalities),
        "series": series,
        "instances": reader.instances,
        "size_bytes": reader.size_bytes,
        "first_received_at": reader.first,
        "last_received_at": reader.last,
    }


class _Reader:
    """Everything about the instances of a series or a study, in bounded memory."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self.document: DicomJson = {}
        self.sources: Sources = {}
        self.instances = self.size_bytes = self.first = self.last = 0

    async def read(self, database: Database, session: Any, wanted: Document) -> None:
        async for found in _batches(database, session, wanted):
            incoming = [
                (order_of(each["received_at"], each["object_key"]), self._attributes(each)) for each in found
            ]
            self.document, self.sources, _ = merge(self.document, self.sources, incoming)
            received = [each["received_at"] for each in found]
            self.first = min(received) if not self.instances else min(self.first, *received)
            self.last = max(self.last, *received)
            self.instances += len(found)
            self.size_bytes += sum(each["size_bytes"] for each in found)

    def _attributes(self, found: Document) -> DicomJson:
        return kept.select(unpack(found["context"]), self._level)


async def _batches(database: Database, session: Any, wanted: Document) -> AsyncIterator[list[Document]]:
    fields = {"_id": 0, "received_at": 1, "object_key": 1, "context": 1, "size_bytes": 1}
    cursor = database.collection(INSTANCES).find(wanted, fields, batch_size=_BATCH, session=session)
    while found := await cursor.to_list(_BATCH):
        yield found


async def _modalities(database: Database, session: Any, uid: str) -> set[str]:
    return set(await database.collection(SERIES).distinct("modalities", {"study": uid}, session=session))


def _order(record: InstanceRecord) -> str:
    return order_of(micros(record.received_at), record.object_key)


def series_fields(merged: tuple[DicomJson, Sources, bool]) -> Document:
    document, sources, changed = merged
    if not changed:
        return {}
    terms = terms_of(document, Level.SERIES)
    return {
        "attributes": to_json(document),
        "sources": to_json(sources),
        "modalities": sorted({text for path, _, text in terms if path == (kept.MODALITY,)}),
        **documents.search_fields(terms),
    }


def study_fields(study: Document, merged: tuple[DicomJson, Sources, bool], modalities: list[str]) -> Document:
    document, sources, changed = merged
    if not changed and modalities == study["modalities"]:
        return {}
    terms = terms_of(document, Level.STUDY)
    terms |= {((kept.MODALITIES_IN_STUDY,), 0, modality) for modality in modalities}
    return {
        "attributes": to_json(document),
        "sources": to_json(sources),
        "modalities": modalities,
        **identity_of(document),
        **documents.search_fields(terms),
    }
