"""What a site still has to do before it can be moved, and doing it.

Objects and records move as they are. What would be lost between them is work in hand: events that the
indexer has not seen, reports that wait in its outbox, objects that nobody has announced. So the source's own
indexer is started for as long as that takes. Nothing is received meanwhile.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from isocenter.cli.migration import events as history
from isocenter.cli.migration.events import EventLog, consumer_groups
from isocenter.cli.migration.events_embedded import EmbeddedEvents
from isocenter.cli.migration.sides import Opened, Side, open_events
from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.bus.records import DLQ_SUFFIX
from isocenter.common.errors import IntegrityError
from isocenter.common.events.topics import all_topics, retry_group, retry_topic
from isocenter.common.index.ports import Index
from isocenter.common.index.records import SettleState
from isocenter.common.objects.ports import ObjectStore
from isocenter.common.runtime import Platform, open_platform, start_service, stop_service
from isocenter.indexer import app as indexer
from isocenter.indexer import revision
from isocenter.indexer.settings import IndexerSettings
from isocenter.ingest.debts import Debts
from isocenter.ingest.signals import Signals

LOOK_SECONDS: Final = 0.2
_CONFIRMATIONS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """Work in hand at a site.

    Attributes:
        outbox: events that were decided and are not published.
        confirmations: settled revisions that are not marked as told.
        unread: group -> events that it has not finished.
        retrying: the same for events that failed and are tried again.
        overtaken: receiving studies of which a version was written and then given up, because instances came
            while it settled. Only a live index knows that nobody was told of it: a rebuild takes the version
            as used. So these settle before they move, after their quiet period.
        unannounced: objects whose event is not known to be out.
        receiving: studies that have not settled. They move as they are and settle at the target.
        dead_letters: records that a group gave up on; they move as they are.
    """

    outbox: int = 0
    confirmations: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    retrying: dict[str, int] = field(default_factory=dict)
    overtaken: int = 0
    unannounced: int = 0
    receiving: int = 0
    dead_letters: int = 0

    @property
    def in_the_way(self) -> bool:
        """What other groups than the indexer's have not read goes on at the target."""
        unread = sum(count for group, count in self.unread.items() if _is_indexers(group))
        retrying = sum(self.retrying.values())
        return bool(self.outbox or self.confirmations or unread or retrying or self.overtaken)

    @property
    def can_be_drained(self) -> bool:
        return self.in_the_way or bool(self.unannounced)

    def describe(self) -> str:
        """What is in the way, in words."""
        parts = [f"{self.outbox} events in the outbox"] if self.outbox else []
        parts += [f"{self.confirmations} revisions not confirmed"] if self.confirmations else []
        parts += [f"{group} has {count} events to read" for group, count in self.unread.items() if count]
        parts += [f"{group} has {count} events to retry" for group, count in self.retrying.items() if count]
        parts += [f"{self.overtaken} studies must settle first"] if self.overtaken else []
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def look(site: Opened) -> Waiting:
    """Raises StoreUnavailable, IndexUnavailable, BusUnavailable."""
    return await look_at(site.store, site.index, site.events)


async def drain(side: Side, *, seconds: float) -> None:
    """Announces what is not announced and runs the indexer until nothing is in the way, or time is up.

    Raises:
        Misconfigured, StoreUnavailable, IndexUnavailable, BusUnavailable
    """
    engines = side.engines
    settings = IndexerSettings.load()
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(open_platform(engines.platform, engines=engines))
        await _announce(platform)
        service = indexer.build(settings, platform.ports(indexer.NAME))
        await start_service(service)
        log = platform.telemetry(indexer.NAME).log
        stack.push_async_callback(stop_service, service, settings.drain_seconds, log)
        events = await events_beside(platform, side)
        stack.push_async_callback(events.close)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # Engines tell nobody when they are done.
                while (await look_at(platform.store, platform.index, events)).in_the_way:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_SECONDS)


async def events_beside(platform: Platform, side: Side) -> EventLog:
    """The event log of a platform that is open: an embedded one has one owner in one process."""
    if isinstance(platform.transport, EmbeddedTransport):
        return EmbeddedEvents(platform.transport.open().log, owned=False)
    return await open_events(side.engines)


async def _announce(platform: Platform) -> None:
    ports = platform.ports("ingest")
    debts = Debts(ports, Signals(ports.telemetry))
    await ports.bus.start()
    try:
        await debts.settle()
    finally:
        await debts.stop()
        await ports.bus.stop()


async def look_at(store: ObjectStore, index: Index, events: EventLog) -> Waiting:
    backlog = await index.backlog()
    unread: dict[str, int] = {}
    retrying: dict[str, int] = {}
    for group, topic in consumer_groups():
        unread[group] = await history.lag(events, group, topic)
        retrying[group] = await history.lag(events, retry_group(group), retry_topic(topic, group))
    return Waiting(
        outbox=backlog.outbox,
        confirmations=len(await index.pending_confirmations(_CONFIRMATIONS)),
        unread=unread,
        retrying=retrying,
        overtaken=await _overtaken(store, index) if backlog.receiving else 0,
        unannounced=await _unannounced(store),
        receiving=backlog.receiving,
        dead_letters=await _dead_letters(events),
    )


async def _overtaken(store: ObjectStore, index: Index) -> int:
    count = 0
    async for study in index.studies():
        if study.state is SettleState.RECEIVING:
            revisions = [info.key async for info in store.list(f"{revision.PREFIX}{study.study_key}/")]
            count += any(revision.version_of(key) > study.version for key in revisions)
    return count


async def _unannounced(store: ObjectStore) -> int:
    count = 0
    try:
        async for _ in store.pending():
            count += 1
    except IntegrityError:
        pass  # the comparison of the stores names it
    return count


async def _dead_letters(events: EventLog) -> int:
    count = 0
    for topic in all_topics():
        if topic.endswith(DLQ_SUFFIX):
            for place in history.places(topic, await events.partitions(topic)):
                first, end = await events.bounds(place)
                count += end - first
    return count


def _is_indexers(group: str) -> bool:
    return group.partition(".")[0] == indexer.NAME
