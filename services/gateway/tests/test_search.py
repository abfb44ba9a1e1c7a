from __future__ import annotations

import pytest

from isocenter.common.index.query import (
    All,
    Condition,
    Exact,
    Level,
    OneOf,
    Qualified,
    Query,
    Range,
    Wildcard,
)
from isocenter.gateway.domain import Problem, Target
from isocenter.gateway.search import EMPTY, FUZZY, MAX_WILDCARDS, MULTIPLE, Search, parse_search

PATIENT_NAME = ("00100010",)
STUDY_DATE = ("00080020",)
STUDY_TIME = ("00080030",)


def search(*parameters: tuple[str, str], level: Level = Level.STUDY, target: Target | None = None) -> Search:
    return parse_search(level, target or Target(), parameters, default_limit=100, max_limit=200)


def refused(*parameters: tuple[str, str], level: Level = Level.STUDY) -> Problem:
    with pytest.raises(Problem) as error:
        search(*parameters, level=level)
    assert error.value.status == 400
    return error.value


@pytest.mark.parametrize(
    ("name", "value", "condition"),
    [
        ("00100010", "Doe^Jane", Exact(PATIENT_NAME, "Doe^Jane")),
        ("PatientName", "Doe^Jane", Exact(PATIENT_NAME, "Doe^Jane")),
        ("PatientName", "*doe*", Wildcard(PATIENT_NAME, "*doe*")),
        ("PatientName", "D?e**", Wildcard(PATIENT_NAME, "D?e*")),
        ("StudyDate", "20030101", Exact(STUDY_DATE, "20030101")),
        ("StudyDate", "20030101-20031231", Range(STUDY_DATE, "20030101", "20031231")),
        ("StudyDate", "20030101-", Range(STUDY_DATE, "20030101", None)),
        ("StudyDate", "-20031231", Range(STUDY_DATE, None, "20031231")),
        ("StudyTime", "10-11", Range(STUDY_TIME, "10", "11")),
        ("StudyTime", "1030", Range(STUDY_TIME, "1030", "1030")),
        ("StudyTime", "103000.000000", Exact(STUDY_TIME, "103000.000000")),
        ("StudyInstanceUID", "1.2.3", Exact(("0020000D",), "1.2.3")),
        ("StudyInstanceUID", "1.2.3,1.2.4", OneOf(("0020000D",), ("1.2.3", "1.2.4"))),
        ("0020000d", "1.2.3\\1.2.4", OneOf(("0020000D",), ("1.2.3", "1.2.4"))),
        ("ModalitiesInStudy", "MR", Exact(("00080061",), "MR")),
        ("ModalitiesInStudy", "MR\\CT", OneOf(("00080061",), ("MR", "CT"))),
        ("00080061", "MR,CT", OneOf(("00080061",), ("MR", "CT"))),
        ("PatientID", "*", None),
        ("PatientID", "", None),
        ("StudyInstanceUID", "", None),
        ("StudyID", " 7 ", Exact(("00200010",), "7")),
        (
            "ProcedureCodeSequence.CodeValue",
            "CTHEAD",
            Exact(("00081032", "00080100"), "CTHEAD"),
        ),
    ],
)
def test_a_key_becomes_a_condition(name: str, value: str, condition: Condition | None) -> None:
    parsed = search((name, value))
    assert All(() if condition is None else (condition,)) == parsed.query.where
    assert parsed.warnings == ()


def test_sequence_keys_by_tag_keyword_and_mixture() -> None:
    path = ("00400275", "00400009")
    for name in (
        "00400275.00400009",
        "RequestAttributesSequence.ScheduledProcedureStepID",
        "00400275.ScheduledProcedureStepID",
    ):
        assert search((name, "S1"), level=Level.SERIES).query.where == All((Exact(path, "S1"),))


def test_patient_id_with_its_issuer_is_facility_qualified() -> None:
    parsed = search(("IssuerOfPatientID", "north"), ("PatientID", "17"))
    assert parsed.query.where == All((Qualified(("00100020",), "17", "north"),))


def test_a_wildcard_patient_id_keeps_its_issuer_as_a_condition() -> None:
    parsed = search(("PatientID", "1*"), ("IssuerOfPatientID", "north"))
    assert parsed.query.where == All((Wildcard(("00100020",), "1*"), Exact(("00100021",), "north")))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NoSuchKeyword", "1"),
        ("patientname", "x"),
        ("Limit", "1"),
        ("0010001", "x"),
        ("", "x"),
        ("PatientName.CodeValue", "x"),
        ("StudyDate", "2003-01-01"),
        ("StudyDate", "20031301"),
        ("StudyDate", "-"),
        ("StudyDate", "2003*"),
        ("StudyTime", "25"),
        ("StudyTime", "10:30"),
        ("StudyInstanceUID", "1.2.x"),
        ("StudyInstanceUID", "1.2.*"),
        ("StudyInstanceUID", ","),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", "99999999999"),
        ("limit", ""),
        ("limit", "\N{ARABIC-INDIC DIGIT SEVEN}"),
        ("offset", "-1"),
        ("offset", "1.5"),
        ("fuzzymatching", "maybe"),
        ("includefield", "NoSuchKeyword"),
        ("includefield", "00081030,nope"),
        ("RequestAttributesSequence", "x"),
        ("PatientName", "a\0b"),
        ("PatientName", "x" * 2000),
        ("PatientName", "*a" * (MAX_WILDCARDS + 1)),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name: str, value: str) -> None:
    problem = refused((name, value))
    assert problem.parameter == (name if not name.startswith("includefield") else "includefield")
    assert not value or len(value) < 4 or value not in problem.detail


def test_repeated_keys_and_paging_are_refused() -> None:
    assert refused(("PatientID", "1"), ("00100020", "2")).parameter == "00100020"
    assert refused(("limit", "1"), ("limit", "2")).parameter == "limit"


def test_a_known_attribute_that_cannot_be_matched_is_ignored_with_a_warning() -> None:
    parsed = search(("PixelSpacing", "1"), ("00091001", "x"), ("Modality", "CT"))
    assert parsed.query.where == All(())
    assert ["00280030", "00091001", "00080060"] == [
        text.removeprefix("Matching on ").split(" ")[0] for text in parsed.warnings
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("fuzzymatching", FUZZY), ("emptyvaluematching", EMPTY), ("multiplevaluematching", MULTIPLE)],
)
def test_switches_that_are_not_supported_are_accepted_and_said(name: str, text: str) -> None:
    assert search((name, "true")).warnings == (text,)
    assert search((name, "false")).warnings == ()


def test_paging() -> None:
    assert search().query == Query(Level.STUDY, limit=100)
    assert search(("limit", "7"), ("offset", "14")).query == Query(Level.STUDY, limit=7, offset=14)
    assert search(("limit", "100000")).query.limit == 200
    assert search(("limit", "0")).query.limit == 0


def test_includefield_list_repeated_and_all() -> None:
    base = search().fields
    assert base is not None
    listed = search(("includefield", "00081030,00081048"), ("includefield", "PatientComments")).fields
    assert listed == base | {"00081030", "00081048", "00104000"}
    assert search(("includefield", "all")).fields is None
    assert search(("includefield", "")).fields == base
    assert search(("StudyDescription", "x")).fields == base | {"00081030"}
    nested = search(("includefield", "ProcedureCodeSequence.CodeValue")).fields
    assert nested == base | {"00081032"}


def test_a_relational_search_returns_the_levels_that_the_path_leaves_open() -> None:
    patient_name, modality = "00100010", "00080060"
    for target, has_name, has_modality in (
        (Target(), True, True),
        (Target("1.2"), False, True),
        (Target("1.2", "1.3"), False, False),
    ):
        fields = search(level=Level.INSTANCE, target=target).fields
        assert fields is not None
        assert has_name is (patient_name in fields)
        assert has_modality is (modality in fields)


def test_the_hierarchy_of_the_path_is_in_the_query() -> None:
    query = search(level=Level.INSTANCE, target=Target("1.2", "1.3")).query
    assert ("1.2", "1.3") == (query.study_instance_uid, query.series_instance_uid)
