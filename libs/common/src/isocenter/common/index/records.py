"""What is known: study, series and instance records. Never a row per frame.

Attribute documents are DICOM JSON (PS3.18 annex F) as dicts: `{"00100010": {"vr": "PN", "Value": [...]}}`.
They hold PHI and live only in the index and in objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

DicomJson = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One instance as the indexer read it from its object.

    Attributes:
        attributes: the patient, study, series and instance attributes that the index keeps for search
            (see `isocenter.common.index.attributes`), one flat DICOM JSON document.
        metadata: zlib-compressed DICOM JSON of the whole data set with bulk values replaced by
            `BulkDataURI` (see `isocenter.common.dicom.metadata`).
        frames: packed frame index (see `isocenter.common.dicom.frames`), empty without pixel data.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_key: str
    series_key: str
    instance_key: str
    object_key: str
    content_digest: str
    size_bytes: int
    received_at: datetime
    sender: str
    attributes: DicomJson
    metadata: bytes
    frames: bytes


class SettleState(StrEnum):
    RECEIVING = "receiving"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study with its revision state.

    Attributes:
        patient: facility-qualified identity (issuer, patient id); issuer is the site's default where the
            data set names none.
        accession: (issuer, accession number), likewise.
        version: 0 until it settles for the first time; `settled_*` describe that version.
        settle_at: when the quiet period ends; None while settled.
        manifests: series key -> manifest object key of the settled version.
        traceparent: W3C trace context of the last arrival, so that settling continues its trace.
    """

    study_instance_uid: str
    study_key: str
    patient: tuple[str, str]
    accession: tuple[str, str]
    attributes: DicomJson
    series: int
    instances: int
    size_bytes: int
    modalities: tuple[str, ...]
    state: SettleState
    version: int
    settle_at: datetime | None
    settled_at: datetime | None
    settled_reason: str | None
    manifests: dict[str, str]
    conflicts: int
    traceparent: str | None
    first_received_at: datetime
    last_received_at: datetime


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    study_instance_uid: str
    series_instance_uid: str
    series_key: str
    attributes: DicomJson
    instances: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ConflictRecord:
    """The same SOP Instance UID with other content: both objects are kept, the first stays current.

    `series_key` is the series that the conflicting object belongs to.
    """

    sop_instance_uid: str
    study_key: str
    series_key: str
    instance_key: str
    current_object_key: str
    conflicting_object_key: str
    detected_at: datetime


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event decided in the same transaction as the change it reports, and not published yet."""

    event_id: str
    topic: str
    key: str
    headers: dict[str, str]
    body: bytes

    @property
    def decided_at(self) -> datetime | None:
        """The event's own time, as its header says it; None where it says none."""
        text = self.headers.get("ce_time")
        return None if text is None else datetime.fromisoformat(text)
