"""The service as it runs: embedded bus, real objects, real index."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isocenter.common.bus.factory import Bus, EmbeddedTransport
from isocenter.common.clock import SystemClock
from isocenter.common.errors import IndexUnavailable, Misconfigured
from isocenter.common.events.models import CloudEvent, InstancesStored, StudySettled
from isocenter.common.index.records import SettleState
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.telemetry import Counter, Gauge, noop
from isocenter.indexer.app import Indexer, build
from isocenter.indexer.rebuild import rebuild
from isocenter.indexer.settings import IndexerSettings
from isocenter.indexer.testing import STUDY, Site, dataset

FAST = IndexerSettings(
    quiet_seconds=0.6, quiet_after_close_seconds=0.1, settle_poll_seconds=0.05, outbox_poll_seconds=0.1
)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - the condition is data in a database
            await asyncio.sleep(0.02)


class World:
    """A site with a bus; the indexer can be stopped and started, as processes are."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.telemetry = noop("indexer")
        self.transport = EmbeddedTransport(folder / "bus.sqlite")
        self.service: Indexer | None = None

    async def start(self, settings: IndexerSettings = FAST) -> Indexer:
        ports = replace(
            self.site.ports,
            bus=self.transport.bus("indexer", self.telemetry),
            clock=SystemClock(),
            telemetry=self.telemetry,
        )
        self.service = build(settings, ports)
        await self.service.start()
        return self.service

    async def stop(self) -> None:
        if self.service is not None:
            await self.service.stop()
            self.service = None
        await self.transport.close()

    async def restart(self) -> Indexer:
        await self.stop()
        await self.site.restart()
        self.transport = EmbeddedTransport(self.folder / "bus.sqlite")
        return await self.start()

    async def publish(self, *events: CloudEvent) -> None:
        bus: Bus = self.transport.bus("ingest", noop("ingest"))
        await bus.start()
        for event in events:
            await bus.publish(event)
        await bus.stop()

    async def settled(self, version: int = 1) -> bool:
        study = await self.site.index.get_study(STUDY)
        return study is not None and (study.state, study.version) == (SettleState.SETTLED, version)

    async def told(self) -> list[str]:
        """Types of the events on the study topic."""
        records = [record async for record in self.transport.inspector().read(StudySettled.topic)]
        return [(record.header("ce_type") or "").split(".")[-2] for record in records]


@pytest.fixture
async def world(site: Site, tmp_path: Path) -> AsyncIterator[World]:
    world = World(site, tmp_path)
    yield world
    await world.stop()


async def test_an_announced_instance_settles_and_is_reported(world: World) -> None:
    service = await world.start()
    stored = await world.site.put(dataset())
    await world.publish(world.site.stored_event([stored]), world.site.closed_event())
    await until(world.settled)
    await until(lambda: told(world, ["settled"]))
    assert all(check.ok for check in await service.health())
    study = await world.site.index.get_study(STUDY)
    assert study is not None
    assert "transfer-closed" == study.settled_reason
    assert study.traceparent is not None


async def told(world: World, expected: list[str]) -> bool:
    return expected == await world.told()


async def test_replaying_the_whole_topic_changes_nothing(world: World) -> None:
    await world.start()
    stored = [await world.site.put(dataset(number=n)) for n in range(1, 4)]
    await world.publish(world.site.stored_event(stored[:2]), world.site.closed_event())
    await until(world.settled)
    await world.publish(world.site.stored_event(stored[2:]))
    await until(lambda: world.settled(2))
    await until(lambda: told(world, ["settled", "updated", "settled"]))
    before = await world.site.dump()

    await world.transport.inspector().rewind("indexer.instances", InstancesStored.topic)
    await until(lambda: known(world, 3))
    await asyncio.sleep(1.0)  # longer than the quiet period: a timer set by mistake would fire

    assert before == await world.site.dump()
    assert ["settled", "updated", "settled"] == await world.told()


async def known(world: World, count: int) -> bool:
    return world.telemetry.metrics.value(Counter.INDEX_INSTANCES, outcome="known") >= count


async def test_a_restart_between_arrival_and_settling_loses_nothing(world: World) -> None:
    await world.start(FAST.model_copy(update={"quiet_seconds": 1.0}))
    stored = await world.site.put(dataset())
    await world.publish(world.site.stored_event([stored]))

    async def indexed() -> bool:
        return await world.site.index.get_study(STUDY) is not None

    await until(indexed)
    await world.restart()
    await until(world.settled)
    await until(lambda: told(world, ["settled"]))


async def test_an_orderly_stop_leaves_nothing_to_tell_or_confirm(world: World) -> None:
    await world.start(FAST.model_copy(update={"outbox_poll_seconds": 3600.0, "settle_poll_seconds": 0.05}))
    stored = await world.site.put(dataset())
    await world.publish(world.site.stored_event([stored]))
    await until(world.settled)
    await world.stop()
    assert 0 == (await world.site.index.backlog()).outbox
    before = await world.site.dump()
    await rebuild(world.site.ports)
    assert before == await world.site.dump()


async def test_events_published_while_the_indexer_was_down_are_indexed_when_it_comes(world: World) -> None:
    stored = await world.site.put(dataset())
    await world.publish(world.site.stored_event([stored]), world.site.closed_event())
    await world.start()
    await until(world.settled)


async def test_a_closed_index_is_told_and_does_not_end_the_service(world: World) -> None:
    service = await world.start()
    await world.site.index.close()
    checks = {check.name: check for check in await service.health()}
    assert not checks["index"].ok
    assert checks["settler"].ok
    assert checks["outbox"].ok


async def test_gauges_tell_what_is_left_to_do(world: World) -> None:
    await world.start(FAST.model_copy(update={"quiet_seconds": 60.0}))
    stored = await world.site.put(dataset())
    await world.publish(world.site.stored_event([stored]))

    async def counted() -> bool:
        return world.telemetry.metrics.value(Gauge.STUDIES_RECEIVING) == 1

    await until(counted)
    assert 0 == world.telemetry.metrics.value(Gauge.OUTBOX_PENDING)


async def test_an_index_that_cannot_be_used_refuses_the_start(world: World) -> None:
    await world.site.index.close()
    with pytest.raises(IndexUnavailable):
        await world.start()
    world.site.index = await SqliteIndex.open(world.folder / "index.sqlite")


def test_without_an_index_there_is_no_indexer(site: Site) -> None:
    with pytest.raises(Misconfigured):
        build(FAST, replace(site.ports, index=None))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_INDEXER_QUIET_SECONDS", "5")
    settings = IndexerSettings.load()
    assert 5 == settings.policy.quiet.total_seconds()
    monkeypatch.setenv("ISOCENTER_INDEXER_QUIET_SECONDS", "0")
    with pytest.raises(Misconfigured, match="QUIET_SECONDS"):
        IndexerSettings.load()
