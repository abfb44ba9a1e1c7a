"""Which value a study or series shows when its instances differ.

The rule: the value of the instance that was received first stays; a value that it lacks is filled by the next
one that has it. "First" is by (received_at, object key), not by order of processing, so that any order of
arrival, any replay and any rebuild end with the same record. Identifiers and their issuers stay together: an
issuer is never taken from another instance than the identifier it qualifies.
"""

from __future__ import annotations

from collections.abc import Iterable

from isocenter.common.index import attributes as kept
from isocenter.common.index.records import DicomJson

_FOLLOWERS = {
    kept.PATIENT_ID: (kept.ISSUER_OF_PATIENT_ID, kept.PATIENT_ID_QUALIFIERS),
    kept.ACCESSION_NUMBER: (kept.ACCESSION_ISSUER,),
}
_FOLLOWING = frozenset(tag for tags in _FOLLOWERS.values() for tag in tags)

Sources = dict[str, str]
"""Tag -> order of the instance its value came from."""


def order_of(received_at: int, object_key: str) -> str:
    """Text that sorts by time of receipt (microseconds), then by object key."""
    return f"{received_at:020d} {object_key}"


def merge(
    document: DicomJson, sources: Sources, incoming: Iterable[tuple[str, DicomJson]]
) -> tuple[DicomJson, Sources, bool]:
    """The document after `incoming` (order, attributes); the last value says whether anything changed."""
    merged, origins = dict(document), dict(sources)
    changed = False
    for order, attributes in incoming:
        for tag in attributes:
            if tag in _FOLLOWING or kept.is_empty(attributes[tag]):
                continue
            if tag in origins and origins[tag] <= order:
                continue
            origins[tag] = order
            for name in (tag, *_FOLLOWERS.get(tag, ())):
                changed |= _take(merged, name, attributes)
    return merged, origins, changed or origins != sources


def _take(merged: DicomJson, tag: str, attributes: DicomJson) -> bool:
    before = merged.pop(tag, None)
    if not kept.is_empty(attributes.get(tag)):
        merged[tag] = attributes[tag]
    return bool(merged.get(tag) != before)
