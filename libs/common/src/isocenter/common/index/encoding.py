"""How every index writes down what it holds: times, canonical JSON, and the attributes of one level."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from isocenter.common.index import attributes as kept
from isocenter.common.index.commitments import Reference
from isocenter.common.index.query import Level
from isocenter.common.index.records import DicomJson, InstanceRecord
from isocenter.common.index.terms import first_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NO_NUMBER = 2**62
"""Sorts instances without an instance number last."""


def micros(moment: datetime) -> int:
    """Whole microseconds since 1970 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    return _EPOCH + value * _MICROSECOND


def to_json(value: Any) -> str:
    """Canonical and ASCII: a lone surrogate from a broken data set cannot stop a write."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def pack(document: DicomJson) -> bytes:
    return zlib.compress(to_json(document).encode(), 1)


def unpack(blob: bytes) -> DicomJson:
    document: DicomJson = json.loads(zlib.decompress(blob))
    return document


def bindable(text: str) -> str:
    """Lone surrogates replaced: no database takes one, and no stored text has one."""
    return text.encode("utf-8", "replace").decode()


def element(vr: str, *values: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def of_level(record: InstanceRecord, level: Level) -> DicomJson:
    """Kept attributes of one level; the UIDs are those the record is filed under."""
    document = kept.select(record.attributes, level)
    match level:
        case Level.STUDY:
            document[kept.STUDY_INSTANCE_UID] = element("UI", record.study_instance_uid)
        case Level.SERIES:
            document[kept.SERIES_INSTANCE_UID] = element("UI", record.series_instance_uid)
        case Level.INSTANCE:
            document[kept.SOP_INSTANCE_UID] = element("UI", record.sop_instance_uid)
            document[kept.SOP_CLASS_UID] = element("UI", record.sop_class_uid)
    return document


def identity_of(document: DicomJson) -> dict[str, str]:
    """Patient id, accession number and their issuers, as the kept attributes of a study name them; an empty
    issuer is the site's default.
    """
    return {
        "patient_id": first_text(document, (kept.PATIENT_ID,), "LO"),
        "patient_issuer": first_text(document, (kept.ISSUER_OF_PATIENT_ID,), "LO")
        or first_text(document, (kept.PATIENT_ID_QUALIFIERS, kept.UNIVERSAL_ENTITY), "UT"),
        "accession": first_text(document, (kept.ACCESSION_NUMBER,), "SH"),
        "accession_issuer": first_text(document, (kept.ACCESSION_ISSUER, kept.LOCAL_NAMESPACE), "UT")
        or first_text(document, (kept.ACCESSION_ISSUER, kept.UNIVERSAL_ENTITY), "UT"),
    }


def number_order(own: DicomJson) -> int:
    """Where an instance stands among those of its series, from its own attributes."""
    text = first_text(own, (kept.INSTANCE_NUMBER,), "IS")
    try:
        return max(-(2**31), min(int(text), 2**31))
    except ValueError:
        return _NO_NUMBER


def pack_references(references: Sequence[Reference]) -> bytes:
    """Of a request for storage commitment: 100,000 UIDs of one root are a few hundred KiB."""
    return zlib.compress("\n".join(" ".join(each) for each in references).encode(), 6)


def unpack_references(blob: bytes) -> tuple[Reference, ...]:
    lines = zlib.decompress(blob).decode().split("\n")
    return tuple(Reference(*line.split(" ")) for line in lines)


def failures_from(document: Mapping[str, int]) -> dict[int, int]:
    """Keys of JSON and BSON documents are text."""
    return {int(position): reason for position, reason in document.items()}
