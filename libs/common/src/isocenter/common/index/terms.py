"""Matching as text: the one normal form that every index compares, so that all of them match alike.

* person names (PN): each component group on its own, case folded after NFC, trailing `^` dropped, so that
  `Doe^Jane`, `DOE^JANE^^^` and the ideographic group each match by themselves. Accents count.
* dates (DA): eight digits; the separators of ACR-NEMA are dropped.
* times (TM) and date-times (DT): padded to full precision, a time zone suffix dropped: values compare as
  local time, as they are written.
* numbers: `7`, `+7` and `007` are the same.
* other text: leading and trailing spaces dropped, case counts (PS3.4 section C.2.2.2.1).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from isocenter.common.index.attributes import MATCHED, is_empty
from isocenter.common.index.query import Level, Path
from isocenter.common.index.records import DicomJson

Term = tuple[Path, int, str]
"""Path, number of the item it stands in (0 outside sequences), text in normal form."""

_INTEGERS = frozenset({"IS", "US", "UL", "UV", "SS", "SL", "SV"})
_DECIMALS = frozenset({"DS", "FL", "FD"})
_PN_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_ZONE = re.compile(r"[+-]\d{4}$")

_TM_LOW, _TM_HIGH = "000000.000000", "235959.999999"
_DT_LOW, _DT_HIGH = "00000101000000.000000", "99991231235959.999999"

HIGHEST = "\U0010ffff"
"""Sorts after every text."""


def text_of(vr: str, text: str) -> str:
    """A value, of a data set or of a query, in normal form. Empty if there is no value."""
    text = _clean(text)
    if vr == "PN":
        return unicodedata.normalize("NFC", text).casefold().rstrip("^ ")
    if vr == "DA":
        return text.replace(".", "")
    if vr == "TM":
        return _pad(text.replace(":", ""), _TM_LOW)
    if vr == "DT":
        return _pad(_ZONE.sub("", text), _DT_LOW)
    if vr in _INTEGERS:
        return _number(text, whole=True)
    if vr in _DECIMALS:
        return _number(text, whole=False)
    return text


def name_groups(text: str) -> tuple[str, ...]:
    """The component groups of a person name as queries write it (`Doe^Jane=ideographic=phonetic`)."""
    groups = (text_of("PN", group) for group in text.split("="))
    return tuple(group for group in groups if group)


def pattern_of(vr: str, pattern: str) -> str:
    """A wildcard pattern in normal form; runs of `*` count as one. `*` alone matches everything."""
    pattern = re.sub(r"\*+", "*", _clean(pattern))
    if vr == "PN":
        return unicodedata.normalize("NFC", pattern).casefold()
    return pattern


def low_of(vr: str, text: str | None) -> str:
    """The smallest normal form that a range beginning at `text` includes."""
    return text_of(vr, text) if text else ""


def high_of(vr: str, text: str | None) -> str:
    """The largest normal form that a range ending at `text` includes: `11` as a time means
    11:59:59.999999.
    """
    if not text:
        return HIGHEST
    text = _clean(text)
    if vr == "TM":
        return _pad(text.replace(":", ""), _TM_HIGH)
    if vr == "DT":
        return _pad(_ZONE.sub("", text), _DT_HIGH)
    return text_of(vr, text)


def terms_of(attributes: DicomJson, level: Level) -> set[Term]:
    """Everything that a search can match on in a document of kept attributes."""
    found: set[Term] = set()
    for row in MATCHED[level]:
        if row.path[0] in attributes:
            found.update(
                (row.path, item, text)
                for item, element in _elements(attributes, row.path)
                for text in _texts(row.vr, element)
            )
    return found


def first_text(attributes: DicomJson, path: Path, vr: str) -> str:
    """The first value in normal form, or an empty string."""
    for _, element in _elements(attributes, path):
        for text in _texts(vr, element):
            return text
    return ""


def _elements(attributes: DicomJson, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    top = attributes.get(path[0])
    if not isinstance(top, dict):
        return
    if len(path) == 1:
        yield 0, top
        return
    items = top.get("Value")
    for number, item in enumerate(items if isinstance(items, list) else []):
        inner = item.get(path[1]) if isinstance(item, dict) else None
        if isinstance(inner, dict):
            yield number, inner


def _texts(vr: str, element: Mapping[str, Any]) -> Iterator[str]:
    if is_empty(element):
        return
    for value in element["Value"]:
        if vr == "PN" and isinstance(value, dict):
            raw: tuple[Any, ...] = tuple(value.get(group) for group in _PN_GROUPS)
        elif vr == "PN" and isinstance(value, str):
            raw = tuple(value.split("="))
        else:
            raw = (value,)
        for part in raw:
            if isinstance(part, (str, int, float)) and not isinstance(part, bool):
                text = text_of(vr, str(part))
                if text:
                    yield text


def _clean(text: str) -> str:
    """No NUL, no lone surrogate (no database takes one), no spaces around."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ").strip()


def _pad(text: str, full: str) -> str:
    return text + full[len(text) :] if text else ""


def _number(text: str, *, whole: bool) -> str:
    try:
        number = float(text)
        if whole and number == int(number):
            return str(int(text)) if text.lstrip("+-").isdigit() else str(int(number))
        return f"{number:.15g}"
    except (ValueError, OverflowError):
        return text
