"""Parking survives death between any two of its steps: never parked for good, never reordered."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from isocenter.common.bus.health import sweep
from isocenter.common.bus.parking import MemoryParking, Parking, Place, SqliteParking
from isocenter.common.errors import BusUnavailable, StoreUnavailable
from isocenter.common.events.models import CloudEvent, TransferClosed

Until = Callable[..., Awaitable[None]]
Step = Callable[..., Awaitable[None]]
NAMES = ["a", "b", "c"]
GROUPS = ("svc.h",)


def dies_before(_step: Step) -> tuple[Step, asyncio.Event]:
    reached = asyncio.Event()

    async def instead(*_args: Any, **_options: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    return instead, reached


def dies_after(step: Step) -> tuple[Step, asyncio.Event]:
    reached = asyncio.Event()

    async def instead(*args: Any, **options: Any) -> None:
        await step(*args, **options)
        reached.set()
        await asyncio.Event().wait()

    return instead, reached


STEPS: dict[str, tuple[str, Callable[[Step], tuple[Step, asyncio.Event]]]] = {
    "before-joining-the-set": ("add", dies_before),
    "after-joining-the-set": ("add", dies_after),
    "before-the-copy": ("publish", dies_before),
    "after-the-copy": ("publish", dies_after),
    "before-leaving-the-set": ("discard", dies_before),
    "after-leaving-the-set": ("discard", dies_after),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("recovers", [True, False], ids=["handled", "given-up"])
async def test_death_at_a_step(backend: Any, make: Any, until: Until, step: str, *, recovers: bool) -> None:
    backend.graceful = 0.05
    await backend.restart()
    topic, first_time, failures = await backend.topic(1, GROUPS), list[str](), [4 if recovers else 1_000]

    async def handle(event: CloudEvent) -> None:
        assert isinstance(event.data, TransferClosed)
        name = event.data.transfer_id
        if name == "a" and failures[0]:
            failures[0] -= 1
            raise StoreUnavailable if recovers else RuntimeError
        if name not in first_time:
            first_time.append(name)

    name, dies = STEPS[step]
    bus = backend.bus("svc")
    bus.subscribe("h", topic, {TransferClosed: handle})
    one = bus._routes[0].subscription
    holder = one if name == "publish" else one.parking
    lives = getattr(holder, name)
    patched, reached = dies(lives)
    setattr(holder, name, patched)
    await bus.start()
    for each in NAMES:
        await bus.publish_entry(make.entry(topic, 0, each))
    async with asyncio.timeout(20):
        await reached.wait()

    await backend.restart()
    setattr(holder, name, lives)
    bus = backend.bus("svc")
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic, 0, "d"))

    expected = [*NAMES, "d"] if recovers else [*NAMES[1:], "d"]
    await until(lambda: first_time == expected)
    parking = backend.waiting_sets()

    async def free() -> bool:
        return not await parking.entries("svc.h")

    await until(free)


async def test_a_study_parked_behind_nothing_is_freed(embedded: Any, make: Any, until: Until) -> None:
    """Offsets moved by hand leave such an entry; events would take the detour for ever."""
    topic, seen = await embedded.topic(), list[str]()

    async def handle(event: CloudEvent) -> None:
        seen.append(event.id)

    bus = embedded.bus("svc")
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic))
    await until(lambda: len(seen) == 1)
    parking, log = embedded.transport.open().parking, embedded.transport.open().log
    await parking.add("svc.h", b"study", f"{topic}/0/0")
    await parking.add("svc.h", b"study", f"{topic}/0/7")
    await until(lambda: log.committed("svc.h", (topic, 0)) == 1)

    assert 1 == await sweep(bus._routes[0].consumers)
    assert [(b"study", f"{topic}/0/7")] == await parking.entries("svc.h")


async def test_a_publisher_cannot_name_the_events_that_wait(backend: Any, make: Any, until: Until) -> None:
    """Two records with the same foreign origin would be one in the set: the first one through frees both."""
    topic, done, failures = await backend.topic(1, GROUPS), list[str](), {"a": 3, "b": 12}

    async def handle(event: CloudEvent) -> None:
        assert isinstance(event.data, TransferClosed)
        name = event.data.transfer_id
        if failures.get(name):
            failures[name] -= 1
            raise StoreUnavailable
        done.append(name)

    bus = backend.bus("svc")
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    for name in "ab":
        await bus.publish_entry(make.entry(topic, 0, name, {"x-origin-id": "same"}))
    await until(lambda: done == ["a"])
    await bus.publish_entry(make.entry(topic, 0, "c"))

    await until(lambda: len(done) == 3)

    assert ["a", "b", "c"] == done


async def test_an_event_that_still_waits_is_not_freed(embedded: Any, make: Any, until: Until) -> None:
    topic, tried = await embedded.topic(), list[str]()

    async def handle(event: CloudEvent) -> None:
        tried.append(event.id)
        raise StoreUnavailable

    bus = embedded.bus("svc")
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic))
    log = embedded.transport.open().log
    await until(lambda: log.committed("svc.h", (topic, 0)) == 1)

    assert 0 == await sweep(bus._routes[0].consumers)
    assert 1 == len(await embedded.transport.open().parking.entries("svc.h"))


async def test_a_bus_that_cannot_take_the_copy_leaves_the_record_where_it_is(
    embedded: Any, make: Any, until: Until
) -> None:
    """And never in a hot loop: the pause between two attempts is asked for."""
    embedded.policy = dataclasses.replace(embedded.policy, move_backoff=700.0)
    await embedded.restart()
    topic, moves, tried = await embedded.topic(), list[str](), list[str]()

    async def handle(event: CloudEvent) -> None:
        tried.append(event.id)
        if len(moves) < 3:
            raise StoreUnavailable

    bus = embedded.bus("svc")
    bus.subscribe("h", topic, {TransferClosed: handle})
    one = bus._routes[0].subscription
    publish, pauses = one.publish, list[float]()

    async def refuses(**options: Any) -> None:
        moves.append(options["topic"])
        if len(moves) < 4:
            raise BusUnavailable
        await publish(**options)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    one.publish, one._sleep = refuses, sleep
    await bus.start()
    await bus.publish_entry(make.entry(topic, 0, "a"))
    log = embedded.transport.open().log

    await until(lambda: log.committed("svc.h", (topic, 0)) == 1)

    assert 3 == len([one for one in pauses if 350.0 <= one <= 700.0])
    assert 4 == len(moves)


@pytest.fixture(params=["memory", "sqlite", "mongo"])
async def parking(request: pytest.FixtureRequest, embedded: Any) -> AsyncIterator[Parking]:
    made: Parking
    if request.param == "memory":
        made = MemoryParking()
    elif request.param == "sqlite":
        log = embedded.transport.open().log
        made = SqliteParking(log.parked(), log.run)
    else:
        made = request.getfixturevalue("mongo_parking")()
    await made.prepare()
    yield made
    await made.close()


async def test_the_set_is_a_set(parking: Parking) -> None:
    await parking.add("g", b"k", "1")
    await parking.add("g", b"k", "1")
    await parking.add("g", b"k", "2")
    await parking.add("other", b"k", "3")
    await parking.discard("g", b"k", "1")
    await parking.discard("g", b"k", "1")

    assert Place.WAITING is await parking.place("g", b"k", "2")
    assert Place.BEHIND is await parking.place("g", b"k", "1")
    assert Place.FREE is await parking.place("g", b"else", "1")
    assert [(b"k", "2")] == await parking.entries("g")
    assert 1 == await parking.studies("g")


async def test_studies_are_counted_and_not_their_events(parking: Parking) -> None:
    for key in (b"\x00", b"\xff", b"k"):
        for ident in ("1", "2"):
            await parking.add("g", key, ident)

    assert (3, 0) == (await parking.studies("g"), await parking.studies("nobody"))
    assert sorted((key, ident) for key in (b"\x00", b"\xff", b"k") for ident in ("1", "2")) == sorted(
        await parking.entries("g")
    )


async def test_the_set_is_still_there_after_a_restart(embedded: Any) -> None:
    await embedded.transport.open().parking.add("g", b"\xff\x00", "t/0/1")

    await embedded.restart()

    assert [(b"\xff\x00", "t/0/1")] == await embedded.transport.open().parking.entries("g")
    assert Place.WAITING is await embedded.transport.open().parking.place("g", b"\xff\x00", "t/0/1")
