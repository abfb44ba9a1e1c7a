"""The waiting sets in MongoDB: shared by replicas, durable, and honest when the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from isocenter.common.bus.mongo_parking import MongoParking
from isocenter.common.bus.parking import Place
from isocenter.common.errors import BusUnavailable, Misconfigured, StoreUnavailable
from isocenter.common.events.models import CloudEvent, TransferClosed
from isocenter.common.settings import MongoSettings
from isocenter.common.telemetry import Counter, noop

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


async def test_order_holds_when_replicas_share_a_failing_study(
    kafka: Any, mongo_parking: Make, make: Any, until: Any
) -> None:
    """One owns the study's partition and the other may own that of its retries."""
    topic, done, failures = await kafka.topic(4, ("svc.h",)), list[str](), {"0.1": 9, "1.4": 5, "2.2": 3}

    async def handle(event: CloudEvent) -> None:
        assert isinstance(event.data, TransferClosed)
        name = event.data.transfer_id
        if failures.get(name):
            failures[name] -= 1
            raise StoreUnavailable
        done.append(name)

    replicas = []
    for _ in range(3):
        kafka.parking = mongo_parking()
        kafka.open()
        bus = kafka.bus()
        bus.subscribe("h", topic, {TransferClosed: handle})
        await bus.start()
        replicas.append((bus, kafka.transport))
    for number in range(8):
        for key in range(6):
            await replicas[0][0].publish_entry(make.entry(topic, key, f"{key}.{number}"))
    await until(lambda: len(set(done)) == 48)

    first_time = list(dict.fromkeys(done))
    for key in range(6):
        assert [f"{key}.{n}" for n in range(8)] == [name for name in first_time if name[0] == str(key)]
    assert 0 == await kafka.parking.studies("svc.h")
    for bus, transport in replicas:
        await bus.stop()
        await transport.close()


async def test_a_bus_waits_for_its_database(kafka: Any, make: Any, until: Any, database: Any) -> None:
    """Who waits is not known while it is away: nothing is handled, nothing is lost, nothing spins."""
    kafka.parking = MongoParking(MongoSettings(uri=SecretStr(database.uri)))
    kafka.open()
    topic, done, telemetry = await kafka.topic(1, ("svc.h",)), list[str](), noop("svc")

    async def handle(event: CloudEvent) -> None:
        done.append(event.id)

    bus = kafka.bus("svc", telemetry)
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic))
    await until(lambda: len(done) == 1)

    def refused() -> float:
        return telemetry.metrics.value(Counter.EVENTS_CONSUMED, outcome="nacked", group="svc.h")

    database.kill()
    await bus.publish_entry(make.entry(topic))
    await until(lambda: refused() >= 1)
    assert refused() < 20
    assert 1 == len(done)
    database.start()

    await until(lambda: len(done) == 2)
    await bus.stop()
    await kafka.transport.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of these tests' own: it is killed."""
    from testbed.mongo import mongo_server  # noqa: PLC0415 - a service's suite alone needs no test bed
    from testbed.server import ServerUnavailable  # noqa: PLC0415

    try:
        server = mongo_server(tmp_path_factory.mktemp("parking"))
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
