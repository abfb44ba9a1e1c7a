"""Requests and results of PS3.18 chapter 13: DICOM JSON (annex F), Native DICOM Model XML (PS3.19 annex A).

Only what the Storage Commitment Request Module (PS3.18 table J.1-1) needs is read; all else is passed over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.index.commitments import Reference
from isocenter.ingest.commitment.domain import MAX_REFERENCES, Refusal, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isocenter.common.index.commitments import Commitment

DICOM_JSON: Final = "application/dicom+json"
DICOM_XML: Final = "application/dicom+xml"

REFERENCED_SOP: Final = "00081199"
FAILED_SOP: Final = "00081198"
REFERENCED_STUDY: Final = "00081110"
FAILED_STUDY: Final = "0008119B"
_SERIES: Final = "00081115"
_BY_CLASS: Final = "00081112"
_INSTANCES: Final = "0008114A"
_CLASS_UID: Final = "00081150"
_INSTANCE_UID: Final = "00081155"
_REASON: Final = "00081197"
_STUDY_UID: Final = "0020000D"
_SERIES_UID: Final = "0020000E"
_KEYWORDS: Final = {
    REFERENCED_SOP: "ReferencedSOPSequence",
    FAILED_SOP: "FailedSOPSequence",
    REFERENCED_STUDY: "ReferencedStudySequence",
    FAILED_STUDY: "FailedStudySequence",
    _SERIES: "ReferencedSeriesSequence",
    _BY_CLASS: "ReferencedInstancesBySOPClassSequence",
    _INSTANCES: "ReferencedInstanceSequence",
    _CLASS_UID: "ReferencedSOPClassUID",
    _INSTANCE_UID: "ReferencedSOPInstanceUID",
    _REASON: "FailureReason",
    _STUDY_UID: "StudyInstanceUID",
    _SERIES_UID: "SeriesInstanceUID",
}
_MAX_XML_DEPTH: Final = 64

Json = dict[str, Any]


def references_in(body: bytes, media_type: str) -> tuple[Reference, ...]:
    """Raises Refused: MALFORMED, INVALID_VALUE or TOO_LARGE."""
    document = _from_xml(body) if media_type == DICOM_XML else _from_json(body)
    found: list[Reference] = []
    for reference in _references(document):
        if len(found) >= MAX_REFERENCES:
            raise Refused(Refusal.TOO_LARGE)
        found.append(reference)
    if not found:
        raise Refused(Refusal.INVALID_VALUE)
    return tuple(found)


def result(commitment: Commitment, media_type: str) -> bytes:
    """The Storage Commitment Response Module (PS3.18 table J.2-1), in the form of the request."""
    document = result_document(commitment)
    return _to_xml(document) if media_type == DICOM_XML else json.dumps(document).encode()


def result_document(commitment: Commitment) -> Json:
    document: Json = {}
    groups: dict[str, list[tuple[Reference, int | None]]] = {}
    for position, reference in enumerate(commitment.references):
        reason = commitment.failures.get(position)
        by_study = bool(reference.study_instance_uid)
        if reason is None:
            tag = REFERENCED_STUDY if by_study else REFERENCED_SOP
        else:
            tag = FAILED_STUDY if by_study else FAILED_SOP
        groups.setdefault(tag, []).append((reference, reason))
    for tag, members in sorted(groups.items()):
        by_study = tag in {REFERENCED_STUDY, FAILED_STUDY}
        items = _studies(members) if by_study else [_item(*member, with_class=True) for member in members]
        document[tag] = _sequence(items)
    return document


# -- references ---------------------------------------------------------------------------------------------


def _references(document: Json) -> Iterator[Reference]:
    for item in _items(document, REFERENCED_SOP):
        yield Reference(_uid(item, _CLASS_UID), _uid(item, _INSTANCE_UID))
    for study in _items(document, REFERENCED_STUDY):
        study_uid = _uid(study, _STUDY_UID)
        for series in _items(study, _SERIES):
            series_uid = _uid(series, _SERIES_UID)
            for sop_class in _items(series, _BY_CLASS):
                class_uid = _uid(sop_class, _CLASS_UID)
                for instance in _items(sop_class, _INSTANCES):
                    yield Reference(class_uid, _uid(instance, _INSTANCE_UID), study_uid, series_uid)


def _values(item: Any, tag: str) -> list[Any]:
    element = item.get(tag) if isinstance(item, dict) else None
    if element is None:
        return []
    values = element.get("Value", []) if isinstance(element, dict) else None
    if not isinstance(values, list):
        raise Refused(Refusal.MALFORMED)
    return values


def _items(item: Any, tag: str) -> list[Json]:
    items = _values(item, tag)
    if not all(isinstance(each, dict) for each in items):
        raise Refused(Refusal.MALFORMED)
    return items


def _uid(item: Json, tag: str) -> str:
    values = _values(item, tag)
    if len(values) != 1 or not isinstance(values[0], str) or not is_valid_uid(values[0]):
        raise Refused(Refusal.INVALID_VALUE)
    return values[0]


def _from_json(body: bytes) -> Json:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(Refusal.MALFORMED) from None
    if not isinstance(document, dict):
        raise Refused(Refusal.MALFORMED)
    return document


# -- results ------------------------------------------------------------------------------------------------


def _sequence(items: list[Json]) -> Json:
    return {"vr": "SQ", "Value": items}


def _ui(uid: str) -> Json:
    return {"vr": "UI", "Value": [uid]}


def _item(reference: Reference, reason: int | None, *, with_class: bool) -> Json:
    item = {_CLASS_UID: _ui(reference.sop_class_uid)} if with_class else {}
    item[_INSTANCE_UID] = _ui(reference.sop_instance_uid)
    return item if reason is None else {_REASON: {"vr": "US", "Value": [reason]}, **item}


def _studies(members: Iterable[tuple[Reference, int | None]]) -> list[Json]:
    """References by study, series and class; each group stands where its first member did."""
    tree: dict[str, dict[str, dict[str, list[Json]]]] = {}
    for reference, reason in members:
        classes = tree.setdefault(reference.study_instance_uid, {}).setdefault(
            reference.series_instance_uid, {}
        )
        item = _item(reference, reason, with_class=False)
        classes.setdefault(reference.sop_class_uid, []).append(item)
    return [
        {
            _SERIES: _sequence(
                [
                    {
                        _BY_CLASS: _sequence(
                            [
                                {_CLASS_UID: _ui(sop_class), _INSTANCES: _sequence(items)}
                                for sop_class, items in classes.items()
                            ]
                        ),
                        _SERIES_UID: _ui(series),
                    }
                    for series, classes in all_series.items()
                ]
            ),
            _STUDY_UID: _ui(study),
        }
        for study, all_series in tree.items()
    ]


# -- XML ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """An element of the document that is being read: an attribute, or a data set or item."""

    tag: str = ""
    item: Json = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)


class _XmlReader:
    """Builds the DICOM JSON of the attributes that count. No entity, no document type."""

    def __init__(self) -> None:
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._forbidden
        self._open: list[_Open] = []
        self._value: list[str] | None = None
        self._depth = 0
        self.document: Json | None = None

    def read(self, body: bytes) -> Json:
        try:
            self._parser.Parse(body, True)
        except (expat.ExpatError, LookupError, ValueError):
            # The latter two: an encoding that nobody has, or that expat does not take.
            raise Refused(Refusal.MALFORMED) from None
        if self.document is None:
            raise Refused(Refusal.MALFORMED)
        return self.document

    def _forbidden(self, *_: object) -> None:
        raise Refused(Refusal.MALFORMED)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_XML_DEPTH:
            raise Refused(Refusal.MALFORMED)
        kind = name.rpartition(" ")[2]
        if self._depth == 1:
            if kind != "NativeDicomModel":
                raise Refused(Refusal.MALFORMED)
            self._open.append(_Open())
        elif kind == "DicomAttribute":
            self._open.append(_Open(tag=attributes.get("tag", "").upper()))
        elif kind == "Item":
            self._open.append(_Open())
        elif kind == "Value":
            self._value = []

    def _text(self, text: str) -> None:
        if self._value is not None:
            self._value.append(text)

    def _end(self, name: str) -> None:
        self._depth -= 1
        kind = name.rpartition(" ")[2]
        if self._depth == 0:
            self.document = self._open.pop().item
        elif kind == "DicomAttribute":
            attribute = self._open.pop()
            if self._open and attribute.tag in _KEYWORDS:
                self._open[-1].item[attribute.tag] = {"Value": attribute.values}
        elif kind == "Item":
            item = self._open.pop()
            if self._open:
                self._open[-1].values.append(item.item)
        elif kind == "Value" and self._value is not None:
            if self._open:
                self._open[-1].values.append("".join(self._value).strip())
            self._value = None


def _from_xml(body: bytes) -> Json:
    return _XmlReader().read(body)


def _to_xml(document: Json) -> bytes:
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n',
        '<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">',
        *_xml_attributes(document),
        "</NativeDicomModel>\n",
    ]
    return "".join(parts).encode()


def _xml_attributes(document: Json) -> Iterator[str]:
    for tag, element in sorted(document.items()):
        keyword = quoteattr(_KEYWORDS[tag])
        yield f'<DicomAttribute tag="{tag}" vr="{element["vr"]}" keyword={keyword}>'
        for number, value in enumerate(element["Value"], 1):
            if isinstance(value, dict):
                yield f'<Item number="{number}">'
                yield from _xml_attributes(value)
                yield "</Item>"
            else:
                yield f'<Value number="{number}">{value}</Value>'  # a UID or a number: nothing to escape
        yield "</DicomAttribute>"
