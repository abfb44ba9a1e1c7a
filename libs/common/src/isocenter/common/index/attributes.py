"""Which attributes the index keeps, as data: what search matches on and what it returns.

Everything that PS3.18 tables 10.6.1-5 (required matching attributes) and 10.6.3-3, -4, -5 (response payloads)
name, what viewers ask for through `includefield`, and a few that people search by. Attributes that only the
gateway can know (RetrieveURL, InstanceAvailability, SpecificCharacterSet of the response) are not here.

Text beyond `MAX_ELEMENT_CHARS` is left out of the index, never of the object: a hostile header must not fill
the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isocenter.common.index.query import Level, Path
from isocenter.common.index.records import DicomJson

MAX_ELEMENT_CHARS = 16_384
"""Longest DICOM JSON text of one kept element; the longest legal LT has 10240 characters (PS3.5 table
6.2-1).
"""
_SURELY_SMALL = MAX_ELEMENT_CHARS // 8
_WORD = 1 << 64
MAX_ITEMS = 32
"""Items kept of one sequence."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One kept attribute.

    Attributes:
        path: its tag, or for an attribute inside a sequence the tags from the top.
        level: where its value lives. Patient attributes are kept with the study: there is no patient
            resource, and two studies of one patient may well say different things.
        matchable: search may use it as a key; otherwise it is only returned.
    """

    path: Path
    keyword: str
    vr: str
    level: Level
    matchable: bool = True

    @property
    def tag(self) -> str:
        return self.path[-1]


def _rows(level: Level, text: str) -> Iterator[Attribute]:
    """Rows of `tag[.tag] vr keyword [-]`; a minus marks an attribute that is returned but not matched."""
    for line in text.strip().splitlines():
        path, vr, keyword, *flags = line.split()
        yield Attribute(tuple(path.split(".")), keyword, vr, level, matchable=vr != "SQ" and "-" not in flags)


_STUDY = """
00080020 DA StudyDate
00080030 TM StudyTime
00080050 SH AccessionNumber
00080051 SQ IssuerOfAccessionNumberSequence
00080051.00400031 UT LocalNamespaceEntityID
00080051.00400032 UT UniversalEntityID
00080051.00400033 CS UniversalEntityIDType
00080090 PN ReferringPhysicianName
00080201 SH TimezoneOffsetFromUTC -
00081030 LO StudyDescription
00081032 SQ ProcedureCodeSequence
00081032.00080100 SH CodeValue
00081032.00080102 SH CodingSchemeDesignator
00081032.00080104 LO CodeMeaning -
00081048 PN PhysiciansOfRecord
00081060 PN NameOfPhysiciansReadingStudy
00081080 LO AdmittingDiagnosesDescription
00100010 PN PatientName
00100020 LO PatientID
00100021 LO IssuerOfPatientID
00100024 SQ IssuerOfPatientIDQualifiersSequence
00100024.00400032 UT UniversalEntityID
00100024.00400033 CS UniversalEntityIDType
00100030 DA PatientBirthDate
00100032 TM PatientBirthTime
00100040 CS PatientSex
00101010 AS PatientAge
00101020 DS PatientSize -
00101030 DS PatientWeight -
00102160 SH EthnicGroup
00102180 SH Occupation
001021B0 LT AdditionalPatientHistory -
00104000 LT PatientComments -
0020000D UI StudyInstanceUID
00200010 SH StudyID
"""

_SERIES = """
00080021 DA SeriesDate
00080031 TM SeriesTime
00080060 CS Modality
00080070 LO Manufacturer
00080080 LO InstitutionName
00081010 SH StationName
0008103E LO SeriesDescription
00081040 LO InstitutionalDepartmentName
00081050 PN PerformingPhysicianName
00081070 PN OperatorsName
00081090 LO ManufacturerModelName
00180015 CS BodyPartExamined
00181030 LO ProtocolName
00185100 CS PatientPosition
0020000E UI SeriesInstanceUID
00200011 IS SeriesNumber
00200052 UI FrameOfReferenceUID
00200060 CS Laterality
00400244 DA PerformedProcedureStepStartDate
00400245 TM PerformedProcedureStepStartTime
00400253 SH PerformedProcedureStepID
00400254 LO PerformedProcedureStepDescription
00400275 SQ RequestAttributesSequence
00400275.00400007 LO ScheduledProcedureStepDescription
00400275.00400009 SH ScheduledProcedureStepID
00400275.00401001 SH RequestedProcedureID
00400275.00321060 LO RequestedProcedureDescription
"""

_INSTANCE = """
00080008 CS ImageType
00080016 UI SOPClassUID
00080018 UI SOPInstanceUID
00080022 DA AcquisitionDate
00080023 DA ContentDate
0008002A DT AcquisitionDateTime
00080032 TM AcquisitionTime
00080033 TM ContentTime
00200012 IS AcquisitionNumber
00200013 IS InstanceNumber
00280008 IS NumberOfFrames
00280010 US Rows
00280011 US Columns
00280100 US BitsAllocated
0040A043 SQ ConceptNameCodeSequence
0040A043.00080100 SH CodeValue -
0040A043.00080102 SH CodingSchemeDesignator -
0040A043.00080104 LO CodeMeaning -
0040A491 CS CompletionFlag
0040A493 CS VerificationFlag
00700080 CS ContentLabel
00700081 LO ContentDescription
00700082 DA PresentationCreationDate
00700083 TM PresentationCreationTime
"""

STUDY_INSTANCE_UID = "0020000D"
SERIES_INSTANCE_UID = "0020000E"
SOP_INSTANCE_UID = "00080018"
SOP_CLASS_UID = "00080016"
INSTANCE_NUMBER = "00200013"
MODALITY = "00080060"
PATIENT_ID = "00100020"
ISSUER_OF_PATIENT_ID = "00100021"
PATIENT_ID_QUALIFIERS = "00100024"
ACCESSION_NUMBER = "00080050"
ACCESSION_ISSUER = "00080051"
LOCAL_NAMESPACE = "00400031"
UNIVERSAL_ENTITY = "00400032"

MODALITIES_IN_STUDY = "00080061"
STUDY_SERIES_COUNT = "00201206"
STUDY_INSTANCE_COUNT = "00201208"
SERIES_INSTANCE_COUNT = "00201209"

COMPUTED: tuple[Attribute, ...] = (
    Attribute((MODALITIES_IN_STUDY,), "ModalitiesInStudy", "CS", Level.STUDY),
    Attribute((STUDY_SERIES_COUNT,), "NumberOfStudyRelatedSeries", "IS", Level.STUDY, matchable=False),
    Attribute((STUDY_INSTANCE_COUNT,), "NumberOfStudyRelatedInstances", "IS", Level.STUDY, matchable=False),
    Attribute(
        (SERIES_INSTANCE_COUNT,), "NumberOfSeriesRelatedInstances", "IS", Level.SERIES, matchable=False
    ),
)
"""Counted by the index from what it holds; a value in a data set is ignored."""

KEPT: tuple[Attribute, ...] = (
    *_rows(Level.STUDY, _STUDY),
    *_rows(Level.SERIES, _SERIES),
    *_rows(Level.INSTANCE, _INSTANCE),
)

BY_PATH: Mapping[Path, Attribute] = {attribute.path: attribute for attribute in (*KEPT, *COMPUTED)}

MATCHED: Mapping[Level, tuple[Attribute, ...]] = {
    level: tuple(row for row in KEPT if row.level is level and row.matchable) for level in Level
}
"""What search matches on, by the level at which it lives."""

_LEVELS = (Level.STUDY, Level.SERIES, Level.INSTANCE)
_TOP: Mapping[str, Attribute] = {row.tag: row for row in KEPT if len(row.path) == 1}
TOP_LEVEL: tuple[str, ...] = tuple(_TOP)
"""Tags of a data set that anything kept is under."""
_MEMBERS: Mapping[str, frozenset[str]] = {
    tag: frozenset(row.tag for row in KEPT if len(row.path) == 2 and row.path[0] == tag)
    for tag, top in _TOP.items()
    if top.vr == "SQ"
}


def matching_key(path: Path, level: Level) -> Attribute | None:
    """The attribute, if a search at `level` may match on it: it lives at that level or above."""
    attribute = BY_PATH.get(path)
    if attribute is None or not attribute.matchable:
        return None
    return attribute if _LEVELS.index(attribute.level) <= _LEVELS.index(level) else None


def select(dataset: DicomJson, *levels: Level) -> DicomJson:
    """The kept attributes of `levels` (all levels if none is named) of a DICOM JSON data set.

    Elements of an unexpected shape are left out, never an error: what cannot be indexed can still be read.
    """
    wanted = levels or _LEVELS
    kept: DicomJson = {}
    for tag in sorted(dataset.keys() & _TOP.keys()):
        attribute, element = _TOP[tag], dataset[tag]
        if attribute.level not in wanted or not isinstance(element, dict):
            continue
        if attribute.vr == "SQ":
            element = {"vr": "SQ", "Value": _items(tag, element)}
        else:
            element = {"vr": element.get("vr", attribute.vr), **_values(element)}
        if _is_small(element) or len(json.dumps(element, ensure_ascii=False)) <= MAX_ELEMENT_CHARS:
            kept[tag] = element
    return kept


def _is_small(element: Mapping[str, Any]) -> bool:
    """True only for what is surely within MAX_ELEMENT_CHARS, as nearly everything is: it need not be written
    to be measured. A character takes at most six in JSON text.
    """
    size = 0
    for value in element.get("Value", ()):
        if isinstance(value, str):
            size += len(value) + 4
        elif isinstance(value, float) or value is None:
            size += 8
        elif isinstance(value, dict):
            for inner in value.values():
                if not isinstance(inner, str):
                    return False
                size += len(inner) + 8
        elif isinstance(value, int) and -_WORD < value < _WORD:
            size += 8
        else:
            return False
    return size < _SURELY_SMALL


def _values(element: Mapping[str, Any]) -> dict[str, Any]:
    values = element.get("Value")
    return {"Value": values} if isinstance(values, list) and values else {}


def _items(tag: str, element: Mapping[str, Any]) -> list[DicomJson]:
    items = element.get("Value")
    if not isinstance(items, list):
        return []
    members = _MEMBERS[tag]
    return [
        {
            member: {"vr": inner.get("vr", "UN"), **_values(inner)}
            for member, inner in sorted(item.items())
            if member in members and isinstance(inner, dict)
        }
        for item in items[:MAX_ITEMS]
        if isinstance(item, dict)
    ]


def is_empty(element: Mapping[str, Any] | None) -> bool:
    """No value: absent, zero length, or only empty values (a sequence of empty items, too)."""
    values = (element or {}).get("Value")
    if not isinstance(values, list):
        return True
    return not any(value not in (None, "", {}) for value in values)
