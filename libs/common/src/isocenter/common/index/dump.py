"""The lines of `IndexReader.dump`, the same for every index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from isocenter.common.index.encoding import to_json
from isocenter.common.index.records import ConflictRecord, InstanceRecord, SeriesRecord, StudyRecord

Terms = Iterable[tuple[str, int, str]]
"""(path, item, text) of everything that search compares, as the index holds it."""


def study_line(record: StudyRecord, terms: Terms) -> str:
    """`record` as it is without a default issuer: a rebuild may have another."""
    return to_json(
        {
            "kind": "study",
            "study": record.study_instance_uid,
            "study_key": record.study_key,
            "patient": record.patient,
            "accession": record.accession,
            "attributes": record.attributes,
            "counts": [record.series, record.instances, record.size_bytes, record.conflicts],
            "modalities": record.modalities,
            "state": record.state.value,
            "version": record.version,
            "settled_at": record.settled_at and record.settled_at.isoformat(),
            "settled_reason": record.settled_reason,
            "manifests": record.manifests,
            "received": [record.first_received_at.isoformat(), record.last_received_at.isoformat()],
            "terms": _ordered(terms),
        }
    )


def series_line(record: SeriesRecord, terms: Terms) -> str:
    return to_json(
        {
            "kind": "series",
            "study": record.study_instance_uid,
            "series": record.series_instance_uid,
            "series_key": record.series_key,
            "attributes": record.attributes,
            "counts": [record.instances, record.size_bytes],
            "terms": _ordered(terms),
        }
    )


def instance_line(record: InstanceRecord) -> str:
    return to_json(
        {
            "kind": "instance",
            "study": record.study_instance_uid,
            "series": record.series_instance_uid,
            "instance": record.sop_instance_uid,
            "sop_class": record.sop_class_uid,
            "transfer_syntax": record.transfer_syntax_uid,
            "keys": [record.series_key, record.instance_key, record.object_key],
            "content_digest": record.content_digest,
            "size_bytes": record.size_bytes,
            "received_at": record.received_at.isoformat(),
            "sender": record.sender,
            "attributes": record.attributes,
            "metadata_sha256": hashlib.sha256(record.metadata).hexdigest(),
            "frames_sha256": hashlib.sha256(record.frames).hexdigest(),
        }
    )


def conflict_line(study_instance_uid: str, record: ConflictRecord) -> str:
    return to_json(
        {
            "kind": "conflict",
            "study": study_instance_uid,
            "instance": record.sop_instance_uid,
            "keys": [record.series_key, record.instance_key],
            "objects": [record.current_object_key, record.conflicting_object_key],
        }
    )


def _ordered(terms: Terms) -> list[list[object]]:
    return [list(term) for term in sorted(terms)]
