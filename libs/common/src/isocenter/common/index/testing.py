"""Records for tests of whatever uses an index. Nothing here runs in production."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from isocenter.common.index.ports import Applied, Arrival
from isocenter.common.index.records import DicomJson, InstanceRecord, OutboxEntry
from isocenter.common.keys import SiteKeys

KEYS = SiteKeys(bytes(range(32)))
START = datetime(2026, 1, 1, tzinfo=UTC)
EXPLICIT_LE = "1.2.840.10008.1.2.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def element(vr: str, *values: Any) -> DicomJson:
    """A DICOM JSON element; person names are given as text of their alphabetic group."""
    if vr == "PN":
        return {"vr": vr, "Value": [v if isinstance(v, dict) else {"Alphabetic": v} for v in values]}
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def instance(
    study: str,
    series: str,
    sop: str,
    *,
    received: float = 0,
    content: str = "",
    attributes: DicomJson | None = None,
    sop_class: str = CT_IMAGE_STORAGE,
) -> InstanceRecord:
    """An instance received `received` seconds after START; another `content` is another object."""
    digest = hashlib.sha256(f"{study}/{series}/{sop}/{content}".encode()).hexdigest()
    return InstanceRecord(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        sop_class_uid=sop_class,
        transfer_syntax_uid=EXPLICIT_LE,
        study_key=KEYS.study_key(study),
        series_key=KEYS.series_key(series),
        instance_key=KEYS.instance_key(sop),
        object_key=KEYS.object_key(sop, EXPLICIT_LE, digest),
        content_digest=digest,
        size_bytes=1000,
        received_at=at(received),
        sender="SCANNER",
        attributes=attributes or {},
        metadata=b"metadata of " + digest.encode(),
        frames=b"frames",
    )


def arrival(now: float = 0, *, quiet: float = 60, wait: float = 5400, transfer: str | None = None) -> Arrival:
    return Arrival(
        now=at(now),
        settle_at=at(now + quiet),
        latest_settle_at=at(now + wait),
        traceparent=None,
        transfer_id=transfer,
    )


def silent(study_key: str, applied: Applied) -> Sequence[OutboxEntry]:
    """An outbox builder that reports nothing."""
    return ()


def entry(event_id: str, key: str = "k") -> OutboxEntry:
    return OutboxEntry(event_id, "imaging.study.v1", key, {"ce_id": event_id}, b"{}")
