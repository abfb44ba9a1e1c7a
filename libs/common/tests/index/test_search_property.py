"""Any query finds what a plain reading of PS3.4 C.2.2.2 finds. The matcher here shares no code with the
index.
"""

import asyncio
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.common.index.ports import Index
from isocenter.common.index.query import (
    All,
    AnyOf,
    Condition,
    Exact,
    Level,
    OneOf,
    Path,
    Query,
    Range,
    Wildcard,
)
from isocenter.common.index.records import DicomJson, InstanceRecord
from isocenter.common.index.testing import arrival, element, instance, silent

LEVELS = [Level.STUDY, Level.SERIES, Level.INSTANCE]
KEYS: dict[Path, tuple[str, Level, list[Any]]] = {
    ("00100010",): ("PN", Level.STUDY, ["Doe^Jane", "DOE^John", "doe^jane^^", "Roe", "Ro[e*"]),
    ("00100020",): ("LO", Level.STUDY, ["42", "4", "a", "A", "42 b"]),
    ("00080020",): ("DA", Level.STUDY, ["20231231", "20240101", "20240102"]),
    ("00080030",): ("TM", Level.STUDY, ["10", "1030", "103000", "103000.5", "235959"]),
    ("00080060",): ("CS", Level.SERIES, ["CT", "MR", "SR"]),
    ("00200011",): ("IS", Level.SERIES, [1, 2, 10]),
    ("00400275", "00400009"): ("SH", Level.SERIES, ["S1", "S2"]),
    ("00400275", "00401001"): ("SH", Level.SERIES, ["R1", "R2"]),
    ("00080008",): ("CS", Level.INSTANCE, ["ORIGINAL", "PRIMARY", "AXIAL"]),
    ("00200013",): ("IS", Level.INSTANCE, [1, 2, 10]),
}
UIDS = {("0020000D",): Level.STUDY, ("0020000E",): Level.SERIES, ("00080018",): Level.INSTANCE}


def values(document: DicomJson, path: Path) -> Iterator[tuple[int, Any]]:
    """(item number, value) of everything at `path`."""
    top = document.get(path[0], {})
    if len(path) == 1:
        yield from ((0, value) for value in top.get("Value", []))
        return
    for number, item in enumerate(top.get("Value", [])):
        yield from ((number, value) for value in item.get(path[1], {}).get("Value", []))


def microseconds(text: str, *, up: bool) -> int:
    """TM as a number: what is not written counts as its smallest or its largest value."""
    digits, _, fraction = text.partition(".")
    full = "235959" if up else "000000"
    digits += full[len(digits) :]
    fraction = fraction.ljust(6, "9" if up else "0")
    return ((int(digits[:2]) * 60 + int(digits[2:4])) * 60 + int(digits[4:])) * 10**6 + int(fraction)


def comparable(vr: str, value: Any, *, up: bool = False) -> Any:
    if vr == "PN":
        text = value["Alphabetic"] if isinstance(value, dict) else value
        return text.strip().lower().rstrip("^")
    if vr == "TM":
        return microseconds(value, up=up)
    return int(value) if vr == "IS" else str(value).strip()


def text_matches(vr: str, value: Any, pattern: str) -> bool:
    text = comparable(vr, value) if vr == "PN" else str(value)
    pattern = pattern.lower() if vr == "PN" else pattern
    parts = ("." if c == "?" else ".*" if c == "*" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def leaf_items(document: DicomJson, leaf: Condition, vr: str) -> set[int]:
    """The items in which a single condition holds."""
    match leaf:
        case Exact(path, value):
            wanted = comparable(vr, value)
            return {n for n, v in values(document, path) if comparable(vr, v) == wanted}
        case OneOf(path, listed):
            accepted = [comparable(vr, value) for value in listed]
            return {n for n, v in values(document, path) if comparable(vr, v) in accepted}
        case Wildcard(path, pattern):
            return {n for n, v in values(document, path) if text_matches(vr, v, pattern)}
        case Range(path, low, high):
            lowest = None if low is None else comparable(vr, low)
            highest = None if high is None else comparable(vr, high, up=True)
            return {
                n
                for n, v in values(document, path)
                if (lowest is None or comparable(vr, v) >= lowest)
                and (highest is None or comparable(vr, v) <= highest)
            }
    raise AssertionError(leaf)


def holds(document: DicomJson, condition: Condition) -> bool:
    match condition:
        case AnyOf(conditions):
            return any(holds(document, each) for each in conditions)
        case All(conditions):
            of_sequence = [c for c in conditions if not isinstance(c, All | AnyOf) and len(c.path) > 1]
            selective = [c for c in of_sequence if not universal(c)]
            if not all(holds(document, c) for c in conditions if c not in of_sequence):
                return False
            items = [leaf_items(document, leaf, vr_of(leaf)) for leaf in selective]
            return not items or bool(set.intersection(*items))
    return universal(condition) or bool(leaf_items(document, condition, vr_of(condition)))


def universal(condition: Condition) -> bool:
    return isinstance(condition, Wildcard) and not condition.pattern.strip("*")


def vr_of(leaf: Condition) -> str:
    assert not isinstance(leaf, All | AnyOf)
    return KEYS[leaf.path][0] if leaf.path in KEYS else "UI"


def leaves(level: Level) -> st.SearchStrategy[Condition]:
    reachable = LEVELS[: LEVELS.index(level) + 1]
    found: list[st.SearchStrategy[Condition]] = []
    for path, (vr, its_level, options) in KEYS.items():
        if its_level not in reachable:
            continue
        texts = st.sampled_from([str(option) for option in options])
        found.append(st.builds(Exact, st.just(path), texts))
        if vr in {"PN", "LO", "CS", "SH"}:
            patterns = st.text("*?^dDoeROJan4S12CT[]AI", max_size=6).filter(bool)
            found.append(st.builds(Wildcard, st.just(path), patterns))
        if vr in {"DA", "TM"}:
            bounds = st.one_of(st.none(), texts)
            found.append(st.builds(Range, st.just(path), bounds, bounds))
    for path, its_level in UIDS.items():
        if its_level in reachable:
            uids = st.from_regex(r"1\.[0-2](\.[01]){0,2}", fullmatch=True)
            found.append(st.builds(OneOf, st.just(path), st.lists(uids, max_size=3).map(tuple)))
    return st.one_of(found)


def conditions(level: Level) -> st.SearchStrategy[Condition]:
    return st.recursive(
        leaves(level),
        lambda inner: st.one_of(
            st.builds(All, st.lists(inner, max_size=3).map(tuple)),
            st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
        ),
        max_leaves=6,
    )


def some(path: Path, *, several: bool = False) -> st.SearchStrategy[DicomJson]:
    vr, _, options = KEYS[path]
    chosen = st.lists(st.sampled_from(options), max_size=2 if several else 1, unique=True)
    return chosen.map(lambda found: element(vr, *found))


def documents(level: Level) -> st.SearchStrategy[DicomJson]:
    fields = {
        path[0]: some(path, several=path == ("00080008",))
        for path, (_, its_level, _) in KEYS.items()
        if its_level is level and len(path) == 1
    }
    if level is Level.SERIES:
        item = st.fixed_dictionaries(
            {"00400009": some(("00400275", "00400009")), "00401001": some(("00400275", "00401001"))}
        )
        fields["00400275"] = st.lists(item, max_size=2).map(lambda items: {"vr": "SQ", "Value": items})
    return st.fixed_dictionaries(fields)


@st.composite
def archives(draw: st.DrawFn) -> list[InstanceRecord]:
    records = []
    for study in range(draw(st.integers(1, 3))):
        of_study = draw(documents(Level.STUDY))
        received = draw(st.integers(0, 2))
        for series in range(draw(st.integers(1, 2))):
            of_series = draw(documents(Level.SERIES))
            for number in range(draw(st.integers(1, 2))):
                uid = f"1.{study}.{series}.{number}"
                own = draw(documents(Level.INSTANCE))
                records.append(
                    instance(
                        f"1.{study}",
                        f"1.{study}.{series}",
                        uid,
                        received=received,
                        attributes={
                            **of_study,
                            **of_series,
                            **own,
                            "0020000D": element("UI", f"1.{study}"),
                            "0020000E": element("UI", f"1.{study}.{series}"),
                            "00080018": element("UI", uid),
                        },
                    )
                )
    return records


def uid_at(record: InstanceRecord, level: Level) -> str:
    return {
        Level.STUDY: record.study_instance_uid,
        Level.SERIES: record.series_instance_uid,
        Level.INSTANCE: record.sop_instance_uid,
    }[level]


def expected(records: list[InstanceRecord], query: Query) -> list[str]:
    newest = {r.study_instance_uid: -r.received_at.timestamp() for r in records}
    matching = {
        (
            newest[r.study_instance_uid],
            *(uid_at(r, level) for level in LEVELS[: LEVELS.index(query.level) + 1]),
        )
        for r in records
        if holds(r.attributes, query.where)
    }
    return [str(key[-1]) for key in sorted(matching)]


EXAMPLES = {"sqlite": 50, "mongo": 25, "motor": 10}
"""A server takes its time, and Motor only differs in how a command gets there."""


@pytest.mark.slow
def test_every_query_finds_what_the_standard_says(
    request: pytest.FixtureRequest, opener: Callable[[FilePath], Awaitable[Index]]
) -> None:
    @settings(max_examples=EXAMPLES[request.node.callspec.params["opener"]], deadline=None)
    @given(records=archives(), data=st.data())
    def check(records: list[InstanceRecord], data: st.DataObject) -> None:
        compare(opener, records, data)

    check()


def compare(
    opener: Callable[[FilePath], Awaitable[Index]], records: list[InstanceRecord], data: st.DataObject
) -> None:
    queries = [
        Query(level, where=data.draw(conditions(level), label=level.value))
        for level in LEVELS
        for _ in range(3)
    ]

    async def ask() -> list[list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            index = await opener(FilePath(folder))
            try:
                for record in records:
                    await index.apply([record], arrival(), silent)
                pages = [await index.search(query) for query in queries]
            finally:
                await index.close()
        return [
            [
                match.sop_instance_uid or match.series_instance_uid or match.study_instance_uid
                for match in page.matches
            ]
            for page in pages
        ]

    assert [expected(records, query) for query in queries] == asyncio.run(ask())
