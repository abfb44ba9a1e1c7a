"""Values out of DICOM JSON (PS3.18 annex F), as the manifests of series hold it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from isocenter.common.index.records import DicomJson


def values(document: DicomJson, tag: str) -> list[Any]:
    """All values of an element; empty where it is absent, empty or no list."""
    element = document.get(tag)
    found = element.get("Value") if isinstance(element, Mapping) else None
    return found if isinstance(found, list) else []


def first(document: DicomJson, tag: str) -> Any:
    found = values(document, tag)
    return found[0] if found else None


def text(document: DicomJson, tag: str) -> str:
    """The first value as text without padding; empty where there is none."""
    value = first(document, tag)
    return value.strip(" \0") if isinstance(value, str) else ""


def integer(document: DicomJson, tag: str) -> int | None:
    value = first(document, tag)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):
        return None


def number(document: DicomJson, tag: str) -> float | None:
    found = numbers(document, tag)
    return found[0] if found else None


def numbers(document: DicomJson, tag: str, count: int | None = None) -> tuple[float, ...]:
    """All values as numbers; empty unless all are finite numbers and there are `count` of them."""
    try:
        found = tuple(float(value) for value in values(document, tag))
    except (TypeError, ValueError):
        return ()
    finite = all(abs(value) < float("inf") for value in found)
    return found if finite and count in {None, len(found)} else ()


def items(document: DicomJson, tag: str) -> list[DicomJson]:
    """The items of a sequence."""
    return [item if isinstance(item, dict) else {} for item in values(document, tag)]


def item(document: DicomJson, tag: str) -> DicomJson:
    """The first item of a sequence; empty where there is none."""
    found = items(document, tag)
    return found[0] if found else {}


def inline(document: DicomJson, tag: str) -> bytes | None:
    """A binary value that stands in the document itself."""
    data = document.get(tag, {}).get("InlineBinary")
    if not isinstance(data, str):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return None


def bulk_path(document: DicomJson, tag: str) -> str | None:
    """Where a value that was too long for the document is."""
    uri = document.get(tag, {}).get("BulkDataURI")
    return uri if isinstance(uri, str) else None


def groups(document: DicomJson, frames: int) -> Iterator[tuple[DicomJson, ...]]:
    """For each frame the places where its attributes may be, the most specific first: its functional groups,
    the shared ones (PS3.3 section C.7.6.16), the data set.
    """
    shared = item(document, "52009229")
    own = items(document, "52009230")
    for index in range(frames):
        yield (own[index] if index < len(own) else {}, shared, document)
