"""Between rows and records."""

from __future__ import annotations

import json
import sqlite3

from isocenter.common.index import attributes as kept
from isocenter.common.index.encoding import element, moment, unpack
from isocenter.common.index.records import (
    ConflictRecord,
    DicomJson,
    InstanceRecord,
    OutboxEntry,
    SeriesRecord,
    SettleState,
    StudyRecord,
)


def study(row: sqlite3.Row, default_issuer: str) -> StudyRecord:
    return StudyRecord(
        study_instance_uid=row["study_uid"],
        study_key=row["study_key"],
        patient=(row["patient_issuer"] or default_issuer, row["patient_id"]),
        accession=(row["accession_issuer"] or default_issuer, row["accession"]),
        attributes=json.loads(row["attributes"]),
        series=row["series"],
        instances=row["instances"],
        size_bytes=row["size_bytes"],
        modalities=tuple(json.loads(row["modalities"])),
        state=SettleState(row["state"]),
        version=row["version"],
        settle_at=None if row["settle_at"] is None else moment(row["settle_at"]),
        settled_at=None if row["settled_at"] is None else moment(row["settled_at"]),
        settled_reason=row["settled_reason"],
        manifests=json.loads(row["manifests"]),
        conflicts=row["conflicts"],
        traceparent=row["traceparent"],
        first_received_at=moment(row["first_received_at"]),
        last_received_at=moment(row["last_received_at"]),
    )


def series(row: sqlite3.Row) -> SeriesRecord:
    """From a row of `series` joined with its study's UID."""
    return SeriesRecord(
        study_instance_uid=row["study_uid"],
        series_instance_uid=row["series_uid"],
        series_key=row["series_key"],
        attributes=json.loads(row["attributes"]),
        instances=row["instances"],
        size_bytes=row["size_bytes"],
    )


def instance(row: sqlite3.Row) -> InstanceRecord:
    """From a row of `instances` joined with the names of its series and study."""
    return InstanceRecord(
        study_instance_uid=row["study_uid"],
        series_instance_uid=row["series_uid"],
        sop_instance_uid=row["sop_uid"],
        sop_class_uid=row["sop_class_uid"],
        transfer_syntax_uid=row["transfer_syntax_uid"],
        study_key=row["study_key"],
        series_key=row["series_key"],
        instance_key=row["instance_key"],
        object_key=row["object_key"],
        content_digest=row["content_digest"],
        size_bytes=row["size_bytes"],
        received_at=moment(row["received_at"]),
        sender=row["sender"],
        attributes=unpack(row["context"]) | json.loads(row["attributes"]),
        metadata=row["metadata"],
        frames=row["frames"],
    )


def conflict(row: sqlite3.Row) -> ConflictRecord:
    """From a row of `conflicts` joined with its study's key."""
    return ConflictRecord(
        sop_instance_uid=row["sop_uid"],
        study_key=row["study_key"],
        series_key=row["series_key"],
        instance_key=row["instance_key"],
        current_object_key=row["current_object_key"],
        conflicting_object_key=row["conflicting_object_key"],
        detected_at=moment(row["detected_at"]),
    )


def outbox(row: sqlite3.Row) -> OutboxEntry:
    return OutboxEntry(row["event_id"], row["topic"], row["key"], json.loads(row["headers"]), row["body"])


def study_view(row: sqlite3.Row) -> DicomJson:
    """What a search returns of a study, from columns prefixed `st_`."""
    document: DicomJson = json.loads(row["st_attributes"])
    document[kept.MODALITIES_IN_STUDY] = element("CS", *json.loads(row["st_modalities"]))
    document[kept.STUDY_SERIES_COUNT] = element("IS", row["st_series"])
    document[kept.STUDY_INSTANCE_COUNT] = element("IS", row["st_instances"])
    return document


def series_view(row: sqlite3.Row) -> DicomJson:
    document: DicomJson = json.loads(row["se_attributes"])
    document[kept.SERIES_INSTANCE_COUNT] = element("IS", row["se_instances"])
    return document
