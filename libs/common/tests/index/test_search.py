"""Search, by example. `test_search_property.py` compares with a plain reading of PS3.4 C.2.2.2."""

import pytest

from isocenter.common.errors import Permanent
from isocenter.common.index import attributes as kept
from isocenter.common.index.ports import Index
from isocenter.common.index.query import (
    All,
    AnyOf,
    Condition,
    Exact,
    Level,
    OneOf,
    Qualified,
    Query,
    Range,
    Wildcard,
)
from isocenter.common.index.records import DicomJson
from isocenter.common.index.testing import arrival, element, instance, silent

NAME, PATIENT, MODALITY = ("00100010",), ("00100020",), ("00080060",)
DATE, TIME = ("00080020",), ("00080030",)
MODALITIES = ("00080061",)
STEP, PROCEDURE = ("00400275", "00400009"), ("00400275", "00401001")


def request(step: str, procedure: str) -> DicomJson:
    return {"00400009": element("SH", step), "00401001": element("SH", procedure)}


STUDIES: dict[str, DicomJson] = {
    "1.1": {
        "00100010": element("PN", {"Alphabetic": "Doe^Jane^^", "Ideographic": "山田^花子"}),
        "00100020": element("LO", "42"),
        "00080020": element("DA", "20240229"),
        "00080030": element("TM", "101530.5"),
        "00080050": element("SH", "A[1]*"),
        "00400275": {"vr": "SQ", "Value": [request("S1", "R1"), request("S2", "R2")]},
        "00080060": element("CS", "CT"),
        "00200011": element("IS", 7),
        "00080008": element("CS", "ORIGINAL", "PRIMARY", "AXIAL"),
        "00280010": element("US", 512),
    },
    "1.2": {
        "00100010": element("PN", "MÜLLER^Straße"),
        "00100020": element("LO", "42"),
        "00100021": element("LO", "ELSEWHERE"),
        "00080020": element("DA", "20240301"),
        "00080030": element("TM", "11"),
        "00080060": element("CS", "MR"),
        "00080008": element("CS", "DERIVED", "SECONDARY"),
    },
    "1.3": {"00080060": element("CS", "CT"), "00100020": element("LO")},
}


@pytest.fixture
async def filled(index: Index) -> Index:
    for age, (study, attributes) in enumerate(STUDIES.items()):
        batch = [
            instance(study, f"{study}.1", f"{study}.1.{n}", received=-age, attributes=attributes)
            for n in (1, 2)
        ]
        await index.apply(batch, arrival(), silent)
    sr = {**STUDIES["1.1"], "00080060": element("CS", "SR")}
    await index.apply([instance("1.1", "1.1.2", "1.1.2.1", received=-9, attributes=sr)], arrival(), silent)
    return index


async def studies(index: Index, where: Condition) -> list[str]:
    page = await index.search(Query(Level.STUDY, where=where))
    return [match.study_instance_uid for match in page.matches]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (All(), ["1.1", "1.2", "1.3"]),
        (AnyOf(), []),
        (Exact(PATIENT, "42"), ["1.1", "1.2"]),
        (Exact(PATIENT, " 42 "), ["1.1", "1.2"]),
        (Exact(PATIENT, ""), []),
        (Qualified(PATIENT, "42", "SITE"), ["1.1"]),
        (Qualified(PATIENT, "42", "ELSEWHERE"), ["1.2"]),
        (Qualified(("00080050",), "A[1]*", "SITE"), ["1.1"]),
        (Exact(NAME, "doe^jane"), ["1.1"]),
        (Exact(NAME, "DOE^JANE^"), ["1.1"]),
        (Exact(NAME, "Doe"), []),
        (Exact(NAME, "山田^花子"), ["1.1"]),
        (Exact(NAME, "müller^STRASSE"), ["1.2"]),
        (Exact(NAME, "muller^strasse"), []),
        (Wildcard(NAME, "d*E"), ["1.1"]),
        (Wildcard(NAME, "*山?^*"), ["1.1"]),
        (Wildcard(NAME, "???^*"), ["1.1"]),
        (Wildcard(NAME, "*"), ["1.1", "1.2", "1.3"]),
        (Wildcard(NAME, "**"), ["1.1", "1.2", "1.3"]),
        (Wildcard(("00080050",), "A[1]*"), ["1.1"]),
        (Wildcard(("00080050",), "A[12]*"), []),
        (Wildcard(("00080050",), "a*"), []),
        (Range(DATE, "20240229", "20240301"), ["1.1", "1.2"]),
        (Range(DATE, None, "20240229"), ["1.1"]),
        (Range(DATE, "20240301", None), ["1.2"]),
        (Range(TIME, "10", "10"), ["1.1"]),
        (Range(TIME, "101530.5", "1100"), ["1.1", "1.2"]),
        (Range(TIME, "101530.6", "105959"), []),
        (Exact(TIME, "110000"), ["1.2"]),
        (OneOf(("0020000D",), ("1.3", "1.1", "9.9")), ["1.1", "1.3"]),
        (OneOf(("0020000D",), ()), []),
        (Exact(("00080061",), "SR"), ["1.1"]),
        (OneOf(("00080061",), ("SR", "MR")), ["1.1", "1.2"]),
        (Wildcard(("00080061",), "?R"), ["1.1", "1.2"]),
        (
            All((Exact(PATIENT, "42"), AnyOf((Exact(NAME, "doe^jane"), Exact(DATE, "20240301"))))),
            ["1.1", "1.2"],
        ),
        (All((Exact(PATIENT, "42"), AnyOf())), []),
        (All((Exact(MODALITIES, "CT"), Range(DATE, "20240229", None))), ["1.1"]),
        (All((Exact(MODALITIES, "CT"), Range(DATE, "20240301", None))), []),
        (All((Exact(MODALITIES, "SR"), Exact(DATE, "20240229"), Exact(NAME, "doe^jane"))), ["1.1"]),
        (All((OneOf(MODALITIES, ("MR", "SR")), Range(DATE, None, "20240301"))), ["1.1", "1.2"]),
        (All((OneOf(MODALITIES, ()), Range(DATE, None, "20240301"))), []),
        (All((Exact(MODALITIES, "C"), Range(DATE, None, None))), []),
        (All((Exact(MODALITIES, "CT"), Exact(DATE, ""))), []),
        (AnyOf((All((Exact(MODALITIES, "MR"), Exact(DATE, "20240301"))), Exact(NAME, "x"))), ["1.2"]),
        (Exact(PATIENT, "' OR 1=1 --"), []),
    ],
    ids=str,
)
async def test_studies_that_match(filled: Index, where: Condition, expected: list[str]) -> None:
    assert expected == await studies(filled, where)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Exact(MODALITY, "CT"), ["1.1.1", "1.3.1"]),
        (All((Exact(MODALITY, "CT"), Exact(PATIENT, "42"))), ["1.1.1"]),
        (Exact(("00200011",), "007"), ["1.1.1", "1.1.2"]),
        (Exact(STEP, "S1"), ["1.1.1", "1.1.2"]),
        (All((Exact(STEP, "S1"), Exact(PROCEDURE, "R1"))), ["1.1.1", "1.1.2"]),
        (All((Exact(STEP, "S1"), Exact(PROCEDURE, "R2"))), []),
        (All((Exact(STEP, "S2"), Wildcard(PROCEDURE, "*"), Exact(MODALITY, "SR"))), ["1.1.2"]),
        (All((Exact(MODALITIES, "SR"), Exact(DATE, "20240229"))), ["1.1.1", "1.1.2"]),
        (All((Exact(MODALITIES, "SR"), Exact(DATE, "20240229"), Exact(MODALITY, "CT"))), ["1.1.1"]),
        (Wildcard(STEP, "*"), ["1.1.1", "1.1.2", "1.2.1", "1.3.1"]),
        (Exact(("00080061",), "SR"), ["1.1.1", "1.1.2"]),
    ],
    ids=str,
)
async def test_series_that_match(filled: Index, where: Condition, expected: list[str]) -> None:
    page = await filled.search(Query(Level.SERIES, where=where))
    assert expected == [match.series_instance_uid for match in page.matches]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Exact(("00080018",), "1.2.1.2"), ["1.2.1.2"]),
        (OneOf(("00080018",), ("1.2.1.2", "1.1.1.1")), ["1.1.1.1", "1.2.1.2"]),
        (All((Exact(("00080008",), "AXIAL"), Exact(MODALITY, "CT"))), ["1.1.1.1", "1.1.1.2"]),
        (Exact(("00280010",), "512"), ["1.1.1.1", "1.1.1.2", "1.1.2.1"]),
        (Wildcard(("00080008",), "SECOND*"), ["1.2.1.1", "1.2.1.2"]),
        (Range(("00080020",), None, "20240229"), ["1.1.1.1", "1.1.1.2", "1.1.2.1"]),
        (Exact(("00080016",), "1.2.840.10008.5.1.4.1.1.4"), []),
    ],
    ids=str,
)
async def test_instances_that_match(filled: Index, where: Condition, expected: list[str]) -> None:
    page = await filled.search(Query(Level.INSTANCE, where=where))
    assert expected == [match.sop_instance_uid for match in page.matches]


async def test_the_hierarchy_of_a_resource_narrows_the_search(filled: Index) -> None:
    series = await filled.search(Query(Level.SERIES, study_instance_uid="1.1"))
    assert ["1.1.1", "1.1.2"] == [match.series_instance_uid for match in series.matches]
    found = await filled.search(Query(Level.INSTANCE, study_instance_uid="1.1", series_instance_uid="1.1.2"))
    assert ["1.1.2.1"] == [match.sop_instance_uid for match in found.matches]
    wrong = await filled.search(Query(Level.INSTANCE, study_instance_uid="1.2", series_instance_uid="1.1.2"))
    assert () == wrong.matches


async def test_a_match_holds_its_level_all_levels_above_and_counts(filled: Index) -> None:
    (match,) = (await filled.search(Query(Level.INSTANCE, where=Exact(("00080018",), "1.1.1.2")))).matches
    assert ("1.1", "1.1.1", "1.1.1.2") == (
        match.study_instance_uid,
        match.series_instance_uid,
        match.sop_instance_uid,
    )
    expected = {
        "00080018": element("UI", "1.1.1.2"),
        "00080020": element("DA", "20240229"),
        "00080060": element("CS", "CT"),
        kept.MODALITIES_IN_STUDY: element("CS", "CT", "SR"),
        kept.STUDY_SERIES_COUNT: element("IS", 2),
        kept.STUDY_INSTANCE_COUNT: element("IS", 3),
        kept.SERIES_INSTANCE_COUNT: element("IS", 2),
    }
    assert expected == {tag: match.attributes[tag] for tag in expected}
    (study,) = (await filled.search(Query(Level.STUDY, where=Exact(PATIENT, "42"), limit=1))).matches
    assert {"00080018", "00080060", kept.SERIES_INSTANCE_COUNT}.isdisjoint(study.attributes)


@pytest.mark.parametrize("dates", [2, 200])
async def test_modality_and_date_of_headers_that_break_the_standard(index: Index, dates: int) -> None:
    """Many dates in one study, and modalities that begin with another's name."""
    for number, modality in enumerate(("CT", "CT|2", "CT\0002", "CT 2")):
        attributes = {
            "00080060": element("CS", modality),
            "00080020": element("DA", *(f"2024{day:04d}" for day in range(dates)), "zzz"),
        }
        study = f"1.{number}"
        await index.apply(
            [instance(study, f"{study}.1", f"{study}.1.1", attributes=attributes)], arrival(), silent
        )
    for low, high, found in (
        ("20240001", "20240001", ["1.0"]),
        ("20240001", None, ["1.0"]),
        (None, "20240001", ["1.0"]),
        ("20249999", "20250000", []),
    ):
        assert found == await studies(index, All((Exact(MODALITIES, "CT"), Range(DATE, low, high))))
    assert ["1.1"] == await studies(index, All((Exact(MODALITIES, "CT|2"), Range(DATE, "2", None))))


async def test_a_study_without_modality_returns_an_empty_attribute(index: Index) -> None:
    await index.apply([instance("1.1", "1.1.1", "1")], arrival(), silent)
    (match,) = (await index.search(Query(Level.STUDY))).matches
    assert element("CS") == match.attributes[kept.MODALITIES_IN_STUDY]


@pytest.mark.parametrize(
    ("level", "path"),
    [
        (Level.STUDY, MODALITY),
        (Level.SERIES, ("00080018",)),
        (Level.STUDY, ("00091001",)),
        (Level.STUDY, ("00201206",)),
        (Level.SERIES, ("00400275",)),
    ],
)
async def test_a_key_that_the_level_does_not_have_is_refused(
    index: Index, level: Level, path: tuple[str, ...]
) -> None:
    assert kept.matching_key(path, level) is None
    with pytest.raises(Permanent):
        await index.search(Query(level, where=Exact(path, "x")))


async def test_pages_follow_each_other_without_gap_or_overlap(index: Index) -> None:
    for number in range(25):
        study = f"1.{number}"
        await index.apply(
            [instance(study, f"{study}.1", f"{study}.1.1", received=number % 3)], arrival(), silent
        )
    whole = await index.search(Query(Level.STUDY))
    seen: list[str] = []
    for offset in range(0, 30, 7):
        page = await index.search(Query(Level.STUDY, limit=7, offset=offset))
        seen += [match.study_instance_uid for match in page.matches]
        assert max(0, 25 - offset - 7) == page.remaining
    assert [match.study_instance_uid for match in whole.matches] == seen
    assert 25 == len(set(seen))
    none = await index.search(Query(Level.STUDY, limit=0))
    assert ((), 25) == (none.matches, none.remaining)


async def test_arrivals_while_paging_only_move_the_newer_end(index: Index) -> None:
    """A study that arrives between two pages stands before them: nothing already seen is skipped."""
    for number in range(10):
        study = f"1.{number}"
        await index.apply([instance(study, f"{study}.1", f"{study}.2", received=number)], arrival(), silent)
    first = await index.search(Query(Level.STUDY, limit=5))
    await index.apply([instance("1.99", "1.99.1", "1.99.2", received=99)], arrival(), silent)
    second = await index.search(Query(Level.STUDY, limit=5, offset=5))
    seen = {match.study_instance_uid for match in (*first.matches, *second.matches)}
    assert {f"1.{number}" for number in range(1, 10)} <= seen


async def test_hostile_patterns_end(index: Index) -> None:
    """No pattern may keep a reader busy: neither many stars nor brackets without end."""
    text = "a" * 1024
    await index.apply(
        [instance("1.1", "1.1.1", "1", attributes={"00081030": element("LO", text)})], arrival(), silent
    )
    for pattern in ("*a" * 200 + "b", "?" * 1024, "[" * 300, "*" * 5000 + "b"):
        page = await index.search(Query(Level.STUDY, where=Wildcard(("00081030",), pattern)))
        assert (pattern == "?" * 1024) == bool(page.matches)


async def test_a_list_of_ten_thousand_uids_is_one_query(index: Index) -> None:
    await index.apply([instance("1.1", "1.1.1", "1")], arrival(), silent)
    uids = tuple(f"1.{n}" for n in range(10_000))
    page = await index.search(Query(Level.STUDY, where=OneOf(("0020000D",), uids)))
    assert ["1.1"] == [match.study_instance_uid for match in page.matches]


async def test_text_that_no_database_takes_matches_nothing(index: Index) -> None:
    await index.apply([instance("1.1", "1.1.1", "1")], arrival(), silent)
    for value in ("\ud800", "nul\0", "\udfff*"):
        for where in (Exact(PATIENT, value), Wildcard(PATIENT, value), Qualified(PATIENT, value, value)):
            assert () == (await index.search(Query(Level.STUDY, where=where))).matches
    assert await index.get_study("\ud800") is None
    assert () == (await index.search(Query(Level.SERIES, study_instance_uid="\ud800"))).matches
