"""Sites to move: real objects, a real index and a real event log, made by the services' own code."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from isocenter.cli.migration.drain import events_beside, look, look_at
from isocenter.cli.migration.events import consumer_groups, copied_topics, kept, lag, places
from isocenter.cli.migration.iterating import closing
from isocenter.cli.migration.secret import MARKS
from isocenter.cli.migration.sides import Side, opened
from isocenter.common.bus.inspect import StoredRecord
from isocenter.common.events.models import StoredInstance
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.sealing import SealContext
from isocenter.common.runtime import Platform, open_platform, start_service, stop_service
from isocenter.indexer import app as indexer
from isocenter.indexer.settings import IndexerSettings
from isocenter.indexer.testing import Site, dataset

STUDIES = tuple(f"1.2.826.0.1.3680043.8.498.{number}" for number in range(1, 5))
RECEIVING = STUDIES[-1]
"""The study that has not settled."""
QUICK = IndexerSettings(quiet_seconds=0.05, quiet_after_close_seconds=0.05, settle_poll_seconds=0.02)
SLOW = IndexerSettings(quiet_seconds=3600, quiet_after_close_seconds=3600, settle_poll_seconds=0.02)


def embedded(folder: Path) -> Side:
    return Side.embedded(folder, folder / "keys" / "site.key")


class Sender:
    """Stores and announces instances as ingest does."""

    def __init__(self, platform: Platform) -> None:
        assert platform.index is not None
        self.site = Site(platform.settings.data_dir, platform.store, platform.index, keys=platform.keys)
        self.bus = platform.ports("ingest").bus

    async def send(self, study: str, *, numbers: range, series: int = 1, **values: str) -> None:
        datasets = [dataset(study, series, number, **values) for number in numbers]
        stored = [await self.site.put(each) for each in datasets]
        await self.announce(study, stored)

    async def announce(self, study: str, stored: list[StoredInstance]) -> None:
        await self.bus.publish(self.site.stored_event(stored, study=study))

    async def put_unannounced(self, study: str, number: int) -> None:
        """Ingest died between commit and event."""
        ds = dataset(study=study, number=number, StudyDescription="unannounced")
        stored = await self.site.put(ds)
        info = await self.site.store.head(stored.object_key)
        data = await self.site.store.get(stored.object_key)
        await self.site.store.delete(stored.object_key)
        context = SealContext(info.metadata["study_key"], info.metadata["instance_key"])
        async with self.site.vault.stage(context) as staging:
            await staging.write(data)
            await staging.commit(stored.object_key, info.metadata, pending=True)


@contextlib.asynccontextmanager
async def sending(side: Side) -> AsyncIterator[Sender]:
    async with open_platform(side.engines.platform, engines=side.engines) as platform:
        sender = Sender(platform)
        await sender.bus.start()
        try:
            yield sender
        finally:
            await sender.bus.stop()


@contextlib.asynccontextmanager
async def indexing(side: Side, settings: IndexerSettings) -> AsyncIterator[Platform]:
    async with open_platform(side.engines.platform, engines=side.engines) as platform:
        service = indexer.build(settings, platform.ports("indexer"))
        await start_service(service)
        try:
            yield platform
        finally:
            await stop_service(service, 20, platform.telemetry("indexer").log)


async def index_all(side: Side, settings: IndexerSettings, *, receiving: int, overtaken: int = 0) -> None:
    """Runs the indexer until nothing else waits and so many studies have not settled."""
    until = time.monotonic() + 30
    async with indexing(side, settings) as platform:
        index = platform.index
        assert index is not None
        events = await events_beside(platform, side)
        try:
            while True:
                waiting = await look_at(platform.store, index, events)
                done = not replace(waiting, overtaken=0).in_the_way
                if done and (waiting.receiving, waiting.overtaken) == (receiving, overtaken):
                    return
                assert time.monotonic() < until, waiting
                await asyncio.sleep(0.02)
        finally:
            await events.close()


async def build(side: Side, *, instances: int = 5) -> None:
    """Three settled studies, one of them in two versions and with a conflict, and one that is receiving."""
    SiteKeys.load_or_create(side.key_file)
    settled = STUDIES[:-1]
    async with sending(side) as sender:
        for study in settled:
            await sender.send(study, numbers=range(1, instances + 1))
    await index_all(side, QUICK, receiving=0)
    async with sending(side) as sender:
        sender.site.clock.advance(1)
        await sender.send(STUDIES[0], numbers=range(1, 2), PatientName="Changed^Name")
        await sender.send(STUDIES[0], numbers=range(1, 3), series=2)
    await index_all(side, QUICK, receiving=0)
    async with sending(side) as sender:
        await sender.send(RECEIVING, numbers=range(1, 3))
    await index_all(side, SLOW, receiving=1)
    async with opened(side) as site:
        assert not (await look(site)).in_the_way


async def dump(side: Side) -> list[str]:
    async with opened(side) as site:
        return [line async for line in site.index.dump()]


async def payloads(side: Side) -> dict[str, bytes]:
    """Every object but the marks of migrations."""
    async with opened(side) as site:
        return {
            info.key: await site.store.get(info.key)
            async for info in site.store.list()
            if not info.key.startswith(MARKS)
        }


async def history(side: Side) -> dict[tuple[str, int], list[StoredRecord]]:
    """Records by topic and partition, their offsets made equal."""
    found: dict[tuple[str, int], list[StoredRecord]] = {}
    async with opened(side) as site:
        for topic in copied_topics():
            for place in places(topic.name, await site.events.partitions(topic.name)):
                async with closing(kept(site.events, place, *await site.events.bounds(place), 0)) as pages:
                    found[place] = [replace(one, offset=0) async for page in pages for one in page]
    return found


async def unread(side: Side) -> dict[str, int]:
    """Group -> records that it has not handled, of those that somebody reads here."""
    async with opened(side) as site:
        return {
            group: await lag(site.events, group, topic)
            for group, topic in consumer_groups()
            if group.partition(".")[0] in {"ingest", "indexer"}
        }
