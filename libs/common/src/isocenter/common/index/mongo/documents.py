"""Between documents and records. Attributes are JSON text: their values come from foreign data sets, and BSON
takes neither every number nor every string of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from isocenter.common.index import attributes as kept
from isocenter.common.index.encoding import (
    element,
    micros,
    moment,
    number_order,
    of_level,
    pack,
    to_json,
    unpack,
)
from isocenter.common.index.mongo.compile import term
from isocenter.common.index.mongo.driver import Document
from isocenter.common.index.mongo.pairs import pairs_of
from isocenter.common.index.mongo.schema import key
from isocenter.common.index.query import Level
from isocenter.common.index.records import (
    ConflictRecord,
    DicomJson,
    InstanceRecord,
    OutboxEntry,
    SeriesRecord,
    SettleState,
    StudyRecord,
)
from isocenter.common.index.terms import Term, terms_of


def new_study(study_key: str, received_at: int, latest_settle_at: int) -> Document:
    """A study before its first instance; its UID is its `_id`."""
    return {
        "study_key": study_key,
        "patient_id": "",
        "patient_issuer": "",
        "accession": "",
        "accession_issuer": "",
        "attributes": "{}",
        "sources": "{}",
        "modalities": [],
        **search_fields(()),
        "series": 0,
        "instances": 0,
        "size_bytes": 0,
        "conflicts": 0,
        "first_received_at": received_at,
        "last_received_at": received_at,
        "state": SettleState.RECEIVING.value,
        "version": 0,
        "revision": 0,
        "epoch": 0,
        "settle_at": None,
        "settle_reason": None,
        "latest_settle_at": latest_settle_at,
        "lease_until": 0,
        "settled_at": None,
        "settled_reason": None,
        "manifests": {},
        "manifest_parts": 0,
        "position": 0,
        "traceparent": None,
    }


def search_fields(terms: Collection[Term]) -> Document:
    """`terms`: everything that search compares. `items`: those of sequences again, item by item, for keys
    that must match in one item.
    """
    flat: set[str] = set()
    items: dict[tuple[str, int], list[str]] = {}
    for path, item, text in sorted(terms):
        flat.add(term(path, text))
        if len(path) > 1:
            items.setdefault((path[0], item), []).append(term(path, text))
    flat |= pairs_of(terms)
    return {
        "terms": sorted(flat),
        "items": [{"item": number, "terms": texts} for (_, number), texts in sorted(items.items())],
    }


def terms_in(document: Document) -> list[tuple[str, int, str]]:
    """(path, item, text): what `search_fields` was made of."""
    found = []
    for text in document["terms"]:
        path, _, value = text.partition("=")
        if path.isalnum():  # neither of a sequence nor a pair
            found.append((path, 0, value))
    for item in document["items"]:
        for text in item["terms"]:
            path, _, value = text.partition("=")
            found.append((path, item["item"], value))
    return found


def study(document: Document, default_issuer: str, manifests: dict[str, str]) -> StudyRecord:
    def time(name: str) -> Any:
        return None if document[name] is None else moment(document[name])

    return StudyRecord(
        study_instance_uid=document["_id"],
        study_key=document["study_key"],
        patient=(document["patient_issuer"] or default_issuer, document["patient_id"]),
        accession=(document["accession_issuer"] or default_issuer, document["accession"]),
        attributes=json.loads(document["attributes"]),
        series=document["series"],
        instances=document["instances"],
        size_bytes=document["size_bytes"],
        modalities=tuple(document["modalities"]),
        state=SettleState(document["state"]),
        version=document["version"],
        settle_at=time("settle_at"),
        settled_at=time("settled_at"),
        settled_reason=document["settled_reason"],
        manifests=manifests,
        conflicts=document["conflicts"],
        traceparent=document["traceparent"],
        first_received_at=moment(document["first_received_at"]),
        last_received_at=moment(document["last_received_at"]),
    )


def new_series(record: InstanceRecord) -> Document:
    """The series of an instance, before its first one."""
    return {
        "_id": key(record.study_instance_uid, record.series_instance_uid),
        "study": record.study_instance_uid,
        "uid": record.series_instance_uid,
        "series_key": record.series_key,
        "attributes": "{}",
        "sources": "{}",
        "modalities": [],
        **search_fields(()),
        "instances": 0,
        "size_bytes": 0,
    }


def series(document: Document) -> SeriesRecord:
    return SeriesRecord(
        study_instance_uid=document["study"],
        series_instance_uid=document["uid"],
        series_key=document["series_key"],
        attributes=json.loads(document["attributes"]),
        instances=document["instances"],
        size_bytes=document["size_bytes"],
    )


def new_instance(record: InstanceRecord) -> Document:
    """Its study and series are in its keys."""
    own = of_level(record, Level.INSTANCE)
    return {
        "_id": key(record.study_instance_uid, record.sop_instance_uid),
        "series_id": key(record.study_instance_uid, record.series_instance_uid),
        "sop": record.sop_instance_uid,
        "number": number_order(own),
        "sop_class": record.sop_class_uid,
        "transfer_syntax": record.transfer_syntax_uid,
        "study_key": record.study_key,
        "series_key": record.series_key,
        "instance_key": record.instance_key,
        "object_key": record.object_key,
        "content_digest": record.content_digest,
        "size_bytes": record.size_bytes,
        "received_at": micros(record.received_at),
        "sender": record.sender,
        "attributes": to_json(own),
        "context": pack(of_level(record, Level.STUDY) | of_level(record, Level.SERIES)),
        "terms": search_fields(terms_of(own, Level.INSTANCE))["terms"],
        "metadata": record.metadata,
        "frames": record.frames,
    }


def instance(document: Document) -> InstanceRecord:
    study_uid, _, series_uid = document["series_id"].partition(" ")
    return InstanceRecord(
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
        sop_instance_uid=document["sop"],
        sop_class_uid=document["sop_class"],
        transfer_syntax_uid=document["transfer_syntax"],
        study_key=document["study_key"],
        series_key=document["series_key"],
        instance_key=document["instance_key"],
        object_key=document["object_key"],
        content_digest=document["content_digest"],
        size_bytes=document["size_bytes"],
        received_at=moment(document["received_at"]),
        sender=document["sender"],
        attributes=unpack(document["context"]) | json.loads(document["attributes"]),
        metadata=document["metadata"],
        frames=document["frames"],
    )


def new_conflict(study_uid: str, record: ConflictRecord) -> Document:
    return {
        "_id": key(study_uid, record.sop_instance_uid, record.conflicting_object_key),
        "sop": record.sop_instance_uid,
        "study_key": record.study_key,
        "series_key": record.series_key,
        "instance_key": record.instance_key,
        "current_object_key": record.current_object_key,
        "conflicting_object_key": record.conflicting_object_key,
        "detected_at": micros(record.detected_at),
    }


def conflict(document: Document) -> ConflictRecord:
    return ConflictRecord(
        sop_instance_uid=document["sop"],
        study_key=document["study_key"],
        series_key=document["series_key"],
        instance_key=document["instance_key"],
        current_object_key=document["current_object_key"],
        conflicting_object_key=document["conflicting_object_key"],
        detected_at=moment(document["detected_at"]),
    )


def new_entry(entry: OutboxEntry, position: int) -> Document:
    """`_id` apart: the same id is the same event, and waits once."""
    return {
        "position": position,
        "topic": entry.topic,
        "key": entry.key,
        "headers": to_json(entry.headers),
        "body": entry.body,
    }


def entry(document: Document) -> OutboxEntry:
    return OutboxEntry(
        document["_id"], document["topic"], document["key"], json.loads(document["headers"]), document["body"]
    )


def study_view(document: Document) -> DicomJson:
    """What a search returns of a study."""
    shown: DicomJson = json.loads(document["attributes"])
    shown[kept.MODALITIES_IN_STUDY] = element("CS", *document["modalities"])
    shown[kept.STUDY_SERIES_COUNT] = element("IS", document["series"])
    shown[kept.STUDY_INSTANCE_COUNT] = element("IS", document["instances"])
    return shown


def series_view(document: Document) -> DicomJson:
    shown: DicomJson = json.loads(document["attributes"])
    shown[kept.SERIES_INSTANCE_COUNT] = element("IS", document["instances"])
    return shown
