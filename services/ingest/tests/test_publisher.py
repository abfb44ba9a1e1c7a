"""What arrives while an event is in flight goes into the next; only durable events release their waiters."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import pytest

from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import CloudEvent, Event, InstancesStored, Protocol, StoredInstance
from isocenter.ingest.publisher import StoredPublisher
from isocenter.ingest.testing import FakeBus

if TYPE_CHECKING:
    from isocenter.common.bus.factory import Bus

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
STUDY, OTHER = "a" * 26, "b" * 26


def publisher(bus: FakeBus, *, timeout: float = 20) -> StoredPublisher:
    def wrap(event: Event) -> CloudEvent:
        return CloudEvent(id="1", source="/test", time=WHEN, data=event)

    return StoredPublisher(
        bus=cast("Bus", bus),
        protocol=Protocol.DIMSE,
        sender="MODALITY",
        transfer_id="t",
        wrap=wrap,
        announced=lambda instances: None,
        timeout=timeout,
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
