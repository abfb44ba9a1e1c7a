"""Every standard question is answered through an index, and looks at no more than it must."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from testbed.mongo import MongoServer

from isocenter.common.index.mongo import MongoIndex, schema, search
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
from isocenter.common.index.testing import KEYS, arrival, element, instance, silent
from isocenter.common.settings import MongoSettings

STUDIES = 120
PATIENT, DATE, MODALITIES = ("00100020",), ("00080020",), ("00080061",)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def filled(mongo_server: MongoServer) -> AsyncIterator[MongoIndex]:
    """Filled once: the tests of this file only read."""
    settings = MongoSettings(uri=SecretStr(mongo_server.uri), database="test-plans")
    index = await MongoIndex.open(settings, default_issuer="SITE")

    async def add(number: int) -> None:
        attributes = {
            "00100020": element("LO", f"P{number // 3:04d}"),
            "00080020": element("DA", f"2026{number // 28 + 1:02d}{number % 28 + 1:02d}"),
            "00080050": element("SH", f"A{number}"),
            "00080060": element("CS", ("CT", "MR")[number % 2]),
            "00400275": {"vr": "SQ", "Value": [{"00400009": element("SH", f"S{number}")}]},
        }
        uid = f"1.{number}"
        batch = [
            instance(uid, f"{uid}.{n % 2}", f"{uid}.{n % 2}.{n}", received=number, attributes=attributes)
            for n in range(4)
        ]
        await index.apply(batch, arrival(number), silent)

    await asyncio.gather(*map(add, range(STUDIES)))
    yield index
    await index._database._client.drop_database(settings.database)
    await index.close()


def nodes(plan: Any) -> Iterator[dict[str, Any]]:
    """Every object in an explanation."""
    if isinstance(plan, dict):
        yield plan
        for inner in plan.values():
            yield from nodes(inner)
    elif isinstance(plan, list):
        for inner in plan:
            yield from nodes(inner)


async def explain(index: MongoIndex, command: dict[str, Any]) -> tuple[set[str], int]:
    """The stages of the plan that won, and the most index keys that one part of it examined."""
    found = await index._database._database.command({"explain": command, "verbosity": "executionStats"})
    stages: set[str] = set()
    for node in nodes(found):
        winner = node.get("winningPlan")
        stages |= {each["stage"] for each in nodes(winner) if "stage" in each}
    examined = [node["totalKeysExamined"] for node in nodes(found) if "totalKeysExamined" in node]
    scanned = [int(node["collectionScans"]) for node in nodes(found) if "collectionScans" in node]
    if any(scanned):
        stages.add("COLLSCAN")
    return stages, max(map(int, examined))


@pytest.mark.parametrize(
    ("level", "where", "keys"),
    [
        (Level.STUDY, All(), 11),
        (Level.STUDY, Exact(PATIENT, "P0007"), 4),
        (Level.STUDY, Qualified(PATIENT, "P0007", "SITE"), 4),
        (Level.STUDY, Qualified(("00080050",), "A17", "SITE"), 2),
        (Level.STUDY, Wildcard(PATIENT, "P000*"), 31),
        (Level.STUDY, Exact(("00080050",), "A17"), 2),
        (Level.STUDY, Exact(("0020000D",), "1.17"), 2),
        (Level.STUDY, OneOf(("0020000D",), ("1.17", "1.18")), 4),
        (Level.STUDY, Exact(MODALITIES, "CT"), 11),
        (Level.STUDY, Range(DATE, "20260210", "20260213"), 6),
        (Level.STUDY, All((Wildcard(PATIENT, "P000*"), Range(DATE, "20260103", "20260104"))), 31),
        (Level.STUDY, All((Exact(MODALITIES, "MR"), Range(DATE, "20260210", "20260213"))), 5),
        (Level.STUDY, AnyOf((Exact(PATIENT, "P0007"), Exact(("00080050",), "A99"))), 6),
        (Level.SERIES, Exact(PATIENT, "P0007"), 4),
        (Level.INSTANCE, Exact(PATIENT, "P0007"), 12),
    ],
    ids=str,
)
async def test_the_first_page_of_a_search(
    filled: MongoIndex, level: Level, where: Condition, keys: int
) -> None:
    plan = search.plan_of(Query(level, where=where), "SITE")
    pipeline = search.page_pipeline(level, plan, 0, 10)
    stages, examined = await explain(
        filled, {"aggregate": schema.STUDIES, "pipeline": pipeline, "cursor": {}}
    )
    assert "COLLSCAN" not in stages
    assert {"IXSCAN", "IDHACK"} & stages
    assert examined <= keys


async def test_a_value_comes_in_the_order_of_the_result(filled: MongoIndex) -> None:
    """No sort: a modality that a third of the archive has costs a page, not a third of the archive."""
    for where in (All(), Exact(MODALITIES, "CT"), Exact(PATIENT, "P0007")):
        plan = search.plan_of(Query(Level.STUDY, where=where), "SITE")
        pipeline = search.page_pipeline(Level.STUDY, plan, 0, 10)
        stages, _ = await explain(filled, {"aggregate": schema.STUDIES, "pipeline": pipeline, "cursor": {}})
        assert "SORT" not in stages


@pytest.mark.parametrize(
    ("collection", "wanted", "order", "keys"),
    [
        (schema.STUDIES, {"study_key": KEYS.study_key("1.17")}, None, 1),
        (schema.STUDIES, {"$or": [{"_id": "1.17"}, {"study_key": "1.17"}]}, None, 2),
        (schema.STUDIES, {"last_received_at": {"$lt": 10**18}}, {"last_received_at": -1, "_id": 1}, 10),
        (
            schema.STUDIES,
            {"state": "receiving", "settle_at": {"$lte": 10**18}, "lease_until": {"$lte": 10**18}},
            {"settle_at": 1, "study_key": 1},
            10,
        ),
        (schema.SERIES, {"study": "1.17"}, {"uid": 1}, 2),
        (schema.SERIES, {"terms": "00400275.00400009=S17"}, None, 2),
        (schema.INSTANCES, {"_id": "1.17 1.17.1.3"}, None, 1),
        (schema.INSTANCES, {"sop": "1.17.1.3"}, None, 1),
        (
            schema.INSTANCES,
            {"series_id": schema.below("1.17")},
            {"series_id": 1, "number": 1, "sop": 1},
            4,
        ),
        (schema.INSTANCES, {"_id": schema.below("1.17")}, None, 5),
        (schema.CONFLICTS, {"_id": schema.below("1.17")}, {"_id": 1}, 1),
        (schema.TRANSFERS, {"_id": schema.below("1.17", 3)}, None, 1),
        (schema.OUTBOX, {}, {"position": 1, "_id": 1}, 10),
    ],
    ids=str,
)
async def test_everything_else_that_is_asked(
    filled: MongoIndex, collection: str, wanted: dict[str, Any], order: dict[str, int] | None, keys: int
) -> None:
    command: dict[str, Any] = {"find": collection, "filter": wanted, "limit": 10}
    if order is not None:
        command["sort"] = order
    stages, examined = await explain(filled, command)
    assert {"COLLSCAN", "SORT"}.isdisjoint(stages)
    assert examined <= keys


async def test_series_of_one_attribute_lead_to_their_studies(filled: MongoIndex) -> None:
    """A condition on series alone: their studies are looked up first, and only those are joined."""
    query = Query(Level.SERIES, where=Exact(("00400275", "00400009"), "S17"))
    plan = search.plan_of(query, "SITE")
    assert ["1.17"] == await search._candidates(filled._database, query, plan)
    page = await filled.search(query)
    assert ["1.17.0", "1.17.1"] == [match.series_instance_uid for match in page.matches]


async def test_counting_ends_where_nobody_reads_on(
    filled: MongoIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_COUNTED", 15)
    page = await filled.search(Query(Level.STUDY, limit=10))
    assert (10, 15) == (len(page.matches), page.remaining)
