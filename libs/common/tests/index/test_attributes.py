"""The kept attributes are right by the data dictionary and cover what the standard and viewers ask for."""

import pydicom.datadict
import pytest

from isocenter.common.index import attributes as kept
from isocenter.common.index.query import Level

# PS3.18 table 10.6.1-5
REQUIRED_KEYS = {
    Level.STUDY: [
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ModalitiesInStudy",
        "ReferringPhysicianName",
        "PatientName",
        "PatientID",
        "StudyInstanceUID",
        "StudyID",
    ],
    Level.SERIES: [
        "Modality",
        "SeriesInstanceUID",
        "SeriesNumber",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "RequestAttributesSequence.ScheduledProcedureStepID",
        "RequestAttributesSequence.RequestedProcedureID",
    ],
    Level.INSTANCE: ["SOPClassUID", "SOPInstanceUID", "InstanceNumber"],
}
# PS3.18 tables 10.6.3-3, -4, -5, without what the gateway adds
REQUIRED_RETURNS = {
    Level.STUDY: [
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ModalitiesInStudy",
        "ReferringPhysicianName",
        "TimezoneOffsetFromUTC",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
    ],
    Level.SERIES: [
        "Modality",
        "SeriesDescription",
        "SeriesInstanceUID",
        "SeriesNumber",
        "NumberOfSeriesRelatedInstances",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "RequestAttributesSequence",
    ],
    Level.INSTANCE: [
        "SOPClassUID",
        "SOPInstanceUID",
        "InstanceNumber",
        "Rows",
        "Columns",
        "BitsAllocated",
        "NumberOfFrames",
    ],
}
# What OHIF's study list and series panel ask for
VIEWER_FIELDS = [
    "00081030",
    "00080060",
    "00080090",
    "00100030",
    "00080021",
    "00080031",
    "0008103E",
    "00200011",
]


def path_of(keywords: str) -> tuple[str, ...]:
    tags = [pydicom.datadict.tag_for_keyword(keyword) for keyword in keywords.split(".")]
    return tuple(f"{tag:08X}" for tag in tags if tag is not None)


@pytest.mark.parametrize("attribute", [*kept.KEPT, *kept.COMPUTED], ids=lambda a: a.keyword)
def test_names_and_vrs_are_those_of_the_data_dictionary(attribute: kept.Attribute) -> None:
    tag = int(attribute.tag, 16)
    assert attribute.keyword == pydicom.datadict.keyword_for_tag(tag)
    assert attribute.vr == pydicom.datadict.dictionary_VR(tag)


def test_no_path_is_listed_twice() -> None:
    assert len(kept.BY_PATH) == len(kept.KEPT) + len(kept.COMPUTED)


@pytest.mark.parametrize(("level", "keyword"), [(lv, k) for lv, keys in REQUIRED_KEYS.items() for k in keys])
def test_required_matching_keys_match_at_their_level(level: Level, keyword: str) -> None:
    found = kept.matching_key(path_of(keyword), level)
    assert found is not None
    assert level == found.level


@pytest.mark.parametrize(
    ("level", "keyword"), [(lv, k) for lv, keys in REQUIRED_RETURNS.items() for k in keys]
)
def test_required_return_attributes_are_kept_at_their_level(level: Level, keyword: str) -> None:
    assert level == kept.BY_PATH[path_of(keyword)].level


@pytest.mark.parametrize("tag", VIEWER_FIELDS)
def test_what_viewers_ask_for_is_kept(tag: str) -> None:
    assert (tag,) in kept.BY_PATH


def test_sequences_keep_only_the_members_that_are_listed() -> None:
    item = {"00400009": {"vr": "SH", "Value": ["S1"]}, "00321064": {"vr": "SQ", "Value": [{}]}}
    chosen = kept.select({"00400275": {"vr": "SQ", "Value": [item] * 100}}, Level.SERIES)
    assert {"00400009": item["00400009"]} == chosen["00400275"]["Value"][0]
    assert kept.MAX_ITEMS == len(chosen["00400275"]["Value"])
