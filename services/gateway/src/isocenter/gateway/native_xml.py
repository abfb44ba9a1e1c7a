"""DICOM JSON (PS3.18 annex F) to the Native DICOM Model in XML (PS3.19 section A.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

_OPEN = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">'
)
_CLOSE = "</NativeDicomModel>"
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def to_xml(document: Mapping[str, Any]) -> bytes:
    """One data set as a Native DICOM Model document in UTF-8. What XML 1.0 cannot hold becomes U+FFFD."""
    return (_OPEN + "".join(_data_set(document)) + _CLOSE).encode()


def _text(value: object) -> str:
    return escape(_NOT_XML.sub("\ufffd", str(value)))


def _attribute(value: object) -> str:
    return quoteattr(_NOT_XML.sub("\ufffd", str(value)))


def _data_set(document: Mapping[str, Any]) -> Iterator[str]:
    for tag in sorted(document):
        element = document[tag]
        vr = element.get("vr", "UN")
        name = f"tag={_attribute(tag)} vr={_attribute(vr)}"
        creator = _private_creator(document, tag)
        keyword = "" if int(tag[:4], 16) % 2 else keyword_for_tag(int(tag, 16))
        if creator is not None:
            masked = f"{tag[:4]}00{tag[6:]}"
            name = f'tag="{masked}" vr={_attribute(vr)} privateCreator={_attribute(creator)}'
        elif keyword:
            name += f" keyword={_attribute(keyword)}"
        yield f"<DicomAttribute {name}>"
        yield from _values(vr, element)
        yield "</DicomAttribute>"


def _private_creator(document: Mapping[str, Any], tag: str) -> object | None:
    """The value that reserves this private element's block (PS3.5 section 7.8.1)."""
    if int(tag[:4], 16) % 2 == 0 or tag[4:6] == "00":
        return None
    values = document.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value")
    return values[0] if values else None


def _values(vr: str, element: Mapping[str, Any]) -> Iterator[str]:
    if "BulkDataURI" in element:
        yield f"<BulkData uri={_attribute(element['BulkDataURI'])}/>"
    elif "InlineBinary" in element:
        yield f"<InlineBinary>{_text(element['InlineBinary'])}</InlineBinary>"
    for number, value in enumerate(element.get("Value", ()), start=1):
        if vr == "SQ":
            yield f'<Item number="{number}">'
            yield from _data_set(value or {})
            yield "</Item>"
        elif value is None:
            continue
        elif vr == "PN":
            yield from _person_name(number, value)
        else:
            yield f'<Value number="{number}">{_text(value)}</Value>'


def _person_name(number: int, value: Mapping[str, str]) -> Iterator[str]:
    yield f'<PersonName number="{number}">'
    for group in ("Alphabetic", "Ideographic", "Phonetic"):
        if value.get(group):
            parts = zip(_NAME_PARTS, value[group].split("^"), strict=False)
            inner = "".join(f"<{name}>{_text(part)}</{name}>" for name, part in parts if part)
            yield f"<{group}>{inner}</{group}>"
    yield "</PersonName>"
