"""What a search returns and on what it can match: PS3.18 tables 10.6.1-5, 10.6.3-3, 10.6.3-4 and 10.6.3-5."""

from __future__ import annotations

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

from isocenter.common.index.query import Level


def tag_of(keyword: str) -> str:
    """Eight hex digits, upper case. For keywords of the standard only."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(keyword)
    return f"{tag:08X}"


def lookup(name: str) -> str | None:
    """Tag of a DICOM keyword, or None. Keywords are case sensitive (PS3.6)."""
    tag = keyword_dict.get(name) if name else None  # retired attributes without a keyword stand under ""
    return None if tag is None else f"{tag:08X}"


def vr_of(tag: str) -> str | None:
    """VR of a standard attribute; the first one where the dictionary allows several."""
    try:
        return dictionary_VR(int(tag, 16))[:2]
    except KeyError:
        return None


def _tags(*keywords: str) -> frozenset[str]:
    return frozenset(tag_of(keyword) for keyword in keywords)


SPECIFIC_CHARACTER_SET = tag_of("SpecificCharacterSet")
INSTANCE_AVAILABILITY = tag_of("InstanceAvailability")
RETRIEVE_URL = tag_of("RetrieveURL")

_ALWAYS = _tags("SpecificCharacterSet", "InstanceAvailability", "TimezoneOffsetFromUTC", "RetrieveURL")

RETURNED: dict[Level, frozenset[str]] = {
    Level.STUDY: _ALWAYS
    | _tags(
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ModalitiesInStudy",
        "ReferringPhysicianName",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
    ),
    Level.SERIES: _ALWAYS
    | _tags(
        "Modality",
        "SeriesDescription",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "NumberOfSeriesRelatedInstances",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "RequestAttributesSequence",
    ),
    Level.INSTANCE: _ALWAYS
    | _tags(
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "InstanceNumber",
        "Rows",
        "Columns",
        "BitsAllocated",
        "NumberOfFrames",
    ),
}
"""Attributes of a level that every result has, where the object has them."""

_RANK = {Level.STUDY: 0, Level.SERIES: 1, Level.INSTANCE: 2}


def levels_up_to(level: Level) -> tuple[Level, ...]:
    """The level and those above it."""
    return tuple(other for other in Level if _RANK[other] <= _RANK[level])
