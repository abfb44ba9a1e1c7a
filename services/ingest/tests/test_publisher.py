"""What arrives while an event is in flight goes into the next; only durable events release their waiters."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import pytest

from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import CloudEvent, Event, InstancesStored, Protocol, StoredInstance
from isocenter.ingest.publisher import MAX_INSTANCES, Backlog, StoredPublisher
from isocenter.ingest.testing import FakeBus

if TYPE_CHECKING:
    from collections.abc import Callable

    from isocenter.common.bus.factory import Bus

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
STUDY, OTHER = "a" * 26, "b" * 26


def publisher(
    bus: FakeBus,
    *,
    timeout: float = 20,
    failed: Callable[[str, list[StoredInstance], BaseException], None] = lambda *_: None,
    backlog: Backlog | None = None,
) -> StoredPublisher:
    def wrap(event: Event) -> CloudEvent:
        return CloudEvent(id="1", source="/test", time=WHEN, data=event)

    return StoredPublisher(
        bus=cast("Bus", bus),
        protocol=Protocol.DIMSE,
        sender="MODALITY",
        transfer_id="t",
        wrap=wrap,
        announced=lambda instances: None,
        failed=failed,
        timeout=timeout,
        backlog=backlog,
    )


def stored(number: int) -> StoredInstance:
    return StoredInstance(
        instance_key="c" * 26,
        series_key="d" * 26,
        object_key=f"instances/{number}",
        content_digest="0" * 64,
        size_bytes=number,
        sop_class_uid="1.2",
        transfer_syntax_uid="1.2",
        received_at=WHEN,
    )


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def sizes(bus: FakeBus) -> list[list[int]]:
    return [[instance.size_bytes for instance in event.instances] for event in bus.stored]


async def test_the_first_goes_at_once_and_the_rest_together() -> None:
    bus = FakeBus(gate=asyncio.Event())
    announcer = publisher(bus)
    waiters = [asyncio.create_task(announcer.announce(STUDY, stored(n))) for n in range(5)]
    await settle()
    assert bus.attempts == 1
    assert bus.gate is not None
    bus.gate.set()
    await asyncio.gather(*waiters)
    assert sizes(bus) == [[0], [1, 2, 3, 4]]


async def test_no_event_has_more_than_200_instances() -> None:
    bus = FakeBus()
    announcer = publisher(bus)
    await asyncio.gather(*(announcer.announce(STUDY, stored(n)) for n in range(450)))
    assert [len(event) for event in sizes(bus)] == [1, 200, 200, 49]
    assert sorted(number for event in sizes(bus) for number in event) == list(range(450))


async def test_studies_do_not_wait_for_each_other_and_do_not_mix() -> None:
    bus = FakeBus()
    announcer = publisher(bus)
    await asyncio.gather(
        *(announcer.announce(study, stored(n)) for n in range(10) for study in (STUDY, OTHER))
    )
    for study in (STUDY, OTHER):
        told = [i.size_bytes for e in bus.stored if e.study_key == study for i in e.instances]
        assert sorted(told) == list(range(10))


async def test_a_failed_event_fails_exactly_the_instances_it_carried() -> None:
    bus = FakeBus()
    bus.fail = lambda event: (
        isinstance(event.data, InstancesStored) and event.data.instances[0].size_bytes == 0
    )
    announcer = publisher(bus)
    waiters = [asyncio.create_task(announcer.announce(STUDY, stored(n))) for n in range(3)]
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], BusUnavailable)
    assert results[1:] == [None, None]
    assert sizes(bus) == [[1, 2]]


async def test_a_bus_that_hangs_is_a_failure_after_the_time_limit() -> None:
    bus = FakeBus(gate=asyncio.Event())
    with pytest.raises(BusUnavailable):
        await publisher(bus, timeout=0.05).announce(STUDY, stored(0))


async def test_a_waiter_that_gives_up_takes_nobody_with_it() -> None:
    bus = FakeBus(gate=asyncio.Event())
    announcer = publisher(bus)
    waiters = [asyncio.create_task(announcer.announce(STUDY, stored(n))) for n in range(3)]
    await settle()
    waiters[0].cancel()
    waiters[1].cancel()
    await settle()
    assert bus.gate is not None
    bus.gate.set()
    await waiters[2]
    await announcer.drain()
    assert sizes(bus) == [[0], [1, 2]]


async def test_what_nobody_waits_for_goes_together() -> None:
    bus, backlog = FakeBus(), Backlog()
    announcer = publisher(bus, backlog=backlog)
    for number in range(5):
        announcer.accept(STUDY, stored(number))
    await settle()
    assert (0, 5) == (bus.attempts, backlog.count)
    await bus.published.wait()
    await settle()
    assert sizes(bus) == [[0, 1, 2, 3, 4]]
    assert 0 == backlog.count


async def test_a_full_event_does_not_linger_and_the_end_of_a_transfer_takes_the_rest() -> None:
    bus = FakeBus()
    announcer = publisher(bus)
    for number in range(MAX_INSTANCES + 10):
        announcer.accept(STUDY, stored(number))
    await settle()
    assert [MAX_INSTANCES] == [len(event) for event in sizes(bus)]
    await announcer.drain()
    assert [MAX_INSTANCES, 10] == [len(event) for event in sizes(bus)]


async def test_who_waits_takes_those_along_that_linger() -> None:
    bus = FakeBus()
    announcer = publisher(bus)
    announcer.accept(STUDY, stored(0))
    await announcer.announce(STUDY, stored(1))
    assert sizes(bus) == [[0, 1]]


async def test_a_failed_event_gives_back_what_it_carried_and_nobody_waited_for() -> None:
    bus, backlog = FakeBus(), Backlog()
    bus.fail = lambda _: True
    told: list[tuple[str, list[int]]] = []
    announcer = publisher(
        bus,
        backlog=backlog,
        failed=lambda study, instances, _: told.append((study, [one.size_bytes for one in instances])),
    )
    announcer.accept(STUDY, stored(0))
    waiting = asyncio.create_task(announcer.announce(STUDY, stored(1)))
    with pytest.raises(BusUnavailable):
        await waiting
    await announcer.drain()
    assert [(STUDY, [0])] == told
    assert 0 == backlog.count
