"""Readiness sees what a ping does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from isocenter.common.errors import StoreUnavailable
from isocenter.common.events.models import CloudEvent, TransferClosed

Until = Callable[..., Awaitable[None]]
GROUPS = ("svc.h",)


async def healthy(bus: Any) -> dict[str, bool]:
    return {check.name: check.ok for check in await bus.health()}


async def test_a_running_bus_is_ready(backend: Any, make: Any) -> None:
    topic, bus = await backend.topic(1, GROUPS), backend.bus("svc")
    bus.subscribe("h", topic, {})
    await bus.start()

    assert {"bus": True, "bus.svc.h": True, "bus.svc.h.retry": True} == await healthy(bus)


async def test_a_dead_consume_loop_is_seen(backend: Any, make: Any, until: Until) -> None:
    topic, bus = await backend.topic(1, GROUPS), backend.bus("svc")
    bus.subscribe("h", topic, {})
    await bus.start()
    [task] = bus._routes[0].consumers[0][1].tasks
    task.cancel()
    await until(task.done)

    assert {"bus": True, "bus.svc.h": False, "bus.svc.h.retry": True} == await healthy(bus)


async def test_a_consumer_that_finishes_nothing_is_seen(backend: Any, make: Any, until: Until) -> None:
    backend.policy = type(make.quick)(stall=0.1)
    await backend.restart()
    topic, bus, release = await backend.topic(1, GROUPS), backend.bus("svc"), asyncio.Event()

    async def handle(event: CloudEvent) -> None:
        await release.wait()

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic))

    async def ready() -> bool:
        return (await healthy(bus))["bus.svc.h"]

    async def unready() -> bool:
        return not await ready()

    await until(unready)
    release.set()
    await until(ready)


async def test_waiting_for_a_dependency_is_said_and_is_ready(backend: Any, make: Any, until: Until) -> None:
    topic, bus, tried = await backend.topic(1, GROUPS), backend.bus("svc"), list[str]()

    async def handle(event: CloudEvent) -> None:
        tried.append(event.id)
        raise StoreUnavailable

    bus.subscribe("h", topic, {TransferClosed: handle})
    await bus.start()
    await bus.publish_entry(make.entry(topic))
    await until(lambda: len(tried) > 4)

    details = {check.name: (check.ok, check.detail) for check in await bus.health()}
    ok, detail = details["bus.svc.h.retry"]
    assert ok
    assert detail.endswith("wait for a retry")


async def test_a_log_that_cannot_be_written_is_seen(embedded: Any) -> None:
    bus = embedded.bus("svc")
    await bus.start()
    embedded.transport.open().log.writer.fault = "SQLITE_FULL"

    [check] = await bus.health()

    assert not check.ok
