"""Stopping: handlers in hand finish or are delivered again, and nothing waits longer than it was given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from isocenter.common.errors import StoreUnavailable
from isocenter.common.events.models import CloudEvent, TransferClosed

Until = Callable[..., Awaitable[None]]
GROUPS = ("svc.h",)


async def run(backend: Any, topic: str, handle: Callable[[CloudEvent], Awaitable[None]]) -> Any:
    bus = backend.bus("svc")
    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    return bus


def name_of(event: CloudEvent) -> str:
    assert isinstance(event.data, TransferClosed)
    return event.data.transfer_id


async def test_a_running_handler_finishes_and_is_acknowledged(backend: Any, make: Any, until: Until) -> None:
    topic, began, done = await backend.topic(1, GROUPS), list[str](), list[str]()

    async def handle(event: CloudEvent) -> None:
        began.append(name_of(event))
        await asyncio.sleep(0.3)
        done.append(name_of(event))

    bus = await run(backend, topic, handle)
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: began == ["a"])
    await bus.stop()
    assert ["a"] == done

    await backend.restart()
    bus = await run(backend, topic, handle)
    await bus.publish_entry(make.entry(topic, 0, "b"))
    await until(lambda: done[-1:] == ["b"])

    assert ["a", "b"] == began


async def test_a_handler_that_takes_too_long_is_cut_off_and_comes_again(
    backend: Any, make: Any, until: Until
) -> None:
    backend.graceful = 0.1
    await backend.restart()
    topic, began, done = await backend.topic(1, GROUPS), list[str](), list[str]()

    async def handle(event: CloudEvent) -> None:
        began.append(name_of(event))
        await asyncio.sleep(60 if len(began) == 1 else 0)
        done.append(name_of(event))

    bus = await run(backend, topic, handle)
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: began == ["a"])
    started = time.monotonic()
    await bus.stop()
    assert time.monotonic() - started < 10
    assert [] == done

    await backend.restart()
    await run(backend, topic, handle)
    await until(lambda: done == ["a"])


async def test_a_back_off_does_not_hold_the_stop_up(backend: Any, make: Any, until: Until) -> None:
    """The record of a handler that was between two tries stays where it is."""
    topic, tried = await backend.topic(1, GROUPS), list[str]()
    backend.policy = type(make.quick)(backoff=60, backoff_max=60, tries=2)
    await backend.restart()

    async def fails(event: CloudEvent) -> None:
        tried.append(name_of(event))
        raise StoreUnavailable

    async def works(event: CloudEvent) -> None:
        tried.append("again")

    bus = await run(backend, topic, fails)
    await bus.publish_entry(make.entry(topic, 0, "a"))
    await until(lambda: tried == ["a"])
    async with asyncio.timeout(5):
        await bus.stop()

    await backend.restart()
    await run(backend, topic, works)
    await until(lambda: tried == ["a", "again"])


async def test_a_bus_that_only_publishes_starts_and_stops(backend: Any, make: Any) -> None:
    topic, bus = await backend.topic(), backend.bus("svc")
    await bus.start()
    await bus.publish_entry(make.entry(topic))

    assert [True] == [check.ok for check in await bus.health()]
    await bus.stop()
    assert [False] == [check.ok for check in await bus.health()]
