"""The waiting sets in MongoDB: shared by replicas, durable, and honest when the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from isocenter.common.bus.mongo_parking import MongoParking
from isocenter.common.bus.parking import Place
from isocenter.common.errors import BusUnavailable, Misconfigured
from isocenter.common.settings import MongoSettings

Make = Callable[[], MongoParking]


async def test_what_one_replica_parks_another_sees_at_once(mongo_parking: Make) -> None:
    one, other = mongo_parking(), mongo_parking()
    await asyncio.gather(one.prepare(), other.prepare())

    await one.add("g", b"k", "1")
    assert Place.BEHIND is await other.place("g", b"k", "2")
    await other.discard("g", b"k", "1")
    assert Place.FREE is await one.place("g", b"k", "2")

    await one.close()
    await other.close()


async def test_two_who_park_the_same_event_park_it_once(mongo_parking: Make) -> None:
    parkings = [mongo_parking() for _ in range(4)]
    await parkings[0].prepare()

    await asyncio.gather(*(each.add("g", b"k", "1") for each in parkings))

    assert [(b"k", "1")] == await parkings[0].entries("g")
    for each in parkings:
        await each.close()


async def test_every_question_is_answered_from_the_index(mongo_parking: Make) -> None:
    """One point read per record: it must not grow with what waits, so no document may be read for it."""
    parking = mongo_parking()
    await parking.prepare()
    for number in range(50):
        await parking.add("g", b"k", str(number))
    query = {"group": "g", "key": b"k", "ident": "7"}
    found = parking._waiting.find(query, {"_id": 0, "ident": 1})
    plan: dict[str, Any] = await found.explain()

    statistics = plan["executionStats"]
    assert (1, 0) == (statistics["totalKeysExamined"], statistics["totalDocsExamined"])
    await parking.close()


@pytest.fixture
def database(tmp_path: Path) -> Any:
    """A server of the test's own: it is killed."""
    from testbed.mongo import mongo_server  # noqa: PLC0415 - a service's suite alone needs no test bed
    from testbed.server import ServerUnavailable  # noqa: PLC0415

    try:
        server = mongo_server(tmp_path / "mongo")
        server.start()
    except ServerUnavailable as error:
        pytest.skip(f"NOT RUN: {error}")
    yield server
    server.kill()


async def test_a_set_outlives_a_kill_and_its_absence_is_said(database: Any) -> None:
    parking = MongoParking(MongoSettings(uri=SecretStr(database.uri)))
    await parking.prepare()
    await parking.add("g", b"k", "1")

    database.kill()
    with pytest.raises(BusUnavailable, match="cannot be read or written"):
        await parking.place("g", b"k", "2")
    database.start()

    assert Place.BEHIND is await parking.place("g", b"k", "2")
    await parking.close()


@pytest.mark.parametrize("uri", [None, "http://DOE-JANE@h/"])
def test_an_address_that_cannot_be_used_is_named_and_not_quoted(uri: str | None) -> None:
    settings = MongoSettings(uri=None if uri is None else SecretStr(uri))

    with pytest.raises(Misconfigured, match="ISOCENTER_MONGO_URI") as raised:
        MongoParking(settings)
    assert "JANE" not in str(raised.value)
