"""Runs a migration: secret, drain, objects, events, index, comparison. See the package for how it resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from typing import Final

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.migration import drain as draining
from isocenter.cli.migration import events, objects, records, secret, wrapping
from isocenter.cli.migration.drain import Waiting
from isocenter.cli.migration.objects import Comparison, Copied, Found
from isocenter.cli.migration.report import Plan, Report
from isocenter.cli.migration.sides import Opened, Side, opened
from isocenter.cli.output import size_text
from isocenter.common.clock import Clock, SystemClock
from isocenter.common.errors import IndexUnavailable
from isocenter.common.events.topics import retry_group
from isocenter.common.keys import SiteKeys
from isocenter.common.runtime import open_platform
from isocenter.indexer.rebuild import RebuildReport, rebuild
from isocenter.indexer.settings import IndexerSettings

DRAIN_SECONDS: Final = 120.0
HEADROOM_BYTES: Final = 64 << 20
"""For the index and the events, beside the objects."""

Watch = Callable[[str, int, int | None], None]
"""Step, done so far, and how much there is if that is known. Called often; must return at once."""


def unwatched(_step: str, _done: int, _total: int | None) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One site on its way from `source` to `target`.

    Nothing else may write to either: the caller holds the data directory, and a cluster whose consumer groups
    have members is refused.

    Attributes:
        drain_seconds: how long the source's indexer may take for what waits; 0: it is not started.
        read_back: the comparison reads every byte of the target.
    """

    source: Side
    target: Side
    watch: Watch = unwatched
    clock: Clock = field(default_factory=SystemClock)
    drain_seconds: float = DRAIN_SECONDS
    read_back: bool = False

    async def plan(self) -> Plan:
        """Reads only.

        Raises:
            CommandError: what would stop the migration.
            Misconfigured, StoreUnavailable, IndexUnavailable, BusUnavailable
        """
        keys = secret.share(self.source.key_file, self.target.key_file, write=False)
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(opened(self.source))
            target = await stack.enter_async_context(opened(self.target))
            return await self._plan(source, target, keys)

    async def run(self) -> Report:
        """Moves what is not moved yet and compares everything.

        Raises:
            CommandError: something is in the way; it says what.
            Misconfigured, StoreUnavailable, IndexUnavailable, BusUnavailable: run it again.
        """
        started_at = self.clock.now()
        keys = secret.share(self.source.key_file, self.target.key_file, write=True)
        await self._drain(keys)
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(opened(self.source))
            target = await stack.enter_async_context(opened(self.target))
            plan = await self._plan(source, target, keys)
            if plan.waiting.in_the_way:
                raise _in_the_way(plan.waiting)
            _require_space(plan)
            await secret.claim(target.store, keys)
            same = await self._same_index(source, target)
            if not same:
                # Until it is rebuilt nobody else can write it: half a site must not be taken for a whole one.
                await target.index.clear()
            keys_copied = await wrapping.copy(
                source.keys, target.keys, lambda done: self.watch("keys", done, None)
            )
            copied = await self._objects(source, target, plan)
            events_copied = await self._events(source, target, plan)
        rebuilt = None if same else await self._rebuild(plan)
        return replace(
            await self._compare(keys, started_at),
            copied=copied,
            keys_copied=keys_copied,
            events_copied=events_copied,
            index_rebuilt=rebuilt is not None,
            unreadable=len(rebuilt.unreadable) if rebuilt else 0,
        )

    async def verify(self) -> Report:
        """Compares, and changes nothing. Raises as `plan` does."""
        keys = secret.share(self.source.key_file, self.target.key_file, write=False)
        return await self._compare(keys, self.clock.now())

    async def _plan(self, source: Opened, target: Opened, keys: SiteKeys) -> Plan:
        await self._check(source, target, keys)
        found = await objects.compare(
            source.store, target.store, lambda done, _: self.watch("plan", done, None)
        )
        _refuse_others(found)
        studies = indexed = 0
        async for study in source.index.studies():
            studies += 1
            indexed += study.instances + study.conflicts
        return Plan(
            source=self.source.places(),
            target=self.target.places(),
            objects=found.source.objects,
            size_bytes=found.source.size_bytes,
            missing=found.missing,
            missing_bytes=found.missing_bytes,
            free_bytes=_free_bytes(self.target),
            studies=studies,
            indexed=indexed,
            instances=found.source.instances,
            events=await events.total(source.events),
            waiting=await draining.look(source),
        )

    async def _check(self, source: Opened, target: Opened, keys: SiteKeys) -> None:
        await secret.check_index(source.index, keys, "source")
        await secret.check_index(target.index, keys, "target")
        await secret.check_store(target.store, keys)
        for one, name in ((source, "source"), (target, "target")):
            await _require_quiet(one, name)

    async def _drain(self, keys: SiteKeys) -> None:
        """Nothing is touched before it is known to be the right site, and quiet."""
        async with opened(self.source) as source:
            await secret.check_index(source.index, keys, "source")
            await _require_quiet(source, "source")
            waiting = await draining.look(source)
        if waiting.can_be_drained and self.drain_seconds:
            self.watch("drain", 0, None)
            await draining.drain(self.source, seconds=self.drain_seconds)

    async def _same_index(self, source: Opened, target: Opened) -> bool:
        try:
            await target.index.check()
        except IndexUnavailable:
            return False  # a rebuild was cut off: its mark goes with the next one
        return await records.equal(source.index, target.index)

    async def _objects(self, source: Opened, target: Opened, plan: Plan) -> Copied:
        return await objects.copy(
            source.store, target.store, lambda _, size: self.watch("objects", size, plan.size_bytes)
        )

    async def _events(self, source: Opened, target: Opened, plan: Plan) -> int:
        copied = await events.copy(
            source.events,
            target.events,
            self.clock.now(),
            lambda done: self.watch("events", done, plan.events),
        )
        await events.place_groups(source.events, target.events)
        return copied

    async def _rebuild(self, plan: Plan) -> RebuildReport:
        settings = IndexerSettings.load()
        engines = self.target.engines
        async with open_platform(engines.platform, engines=engines, clock=self.clock) as platform:
            return await rebuild(
                platform.ports("indexer"),
                lambda phase, done: self.watch(
                    "index", done if phase == "instances" else plan.instances, plan.instances
                ),
                policy=settings.policy,
                parsers=settings.parsers,
            )

    async def _compare(self, keys: SiteKeys, started_at: datetime) -> Report:
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(opened(self.source))
            target = await stack.enter_async_context(opened(self.target))
            await self._check(source, target, keys)
            return Report(
                source=self.source.places(),
                target=self.target.places(),
                fingerprint=keys.fingerprint(),
                started_at=started_at,
                finished_at=self.clock.now(),
                release=version("isocenter"),
                read_back=self.read_back,
                waiting=await draining.look(source),
                objects=await objects.compare(
                    source.store,
                    target.store,
                    lambda done, _: self.watch("compare objects", done, None),
                    read_back=self.read_back,
                ),
                index=await records.compare(
                    source.index, target.index, keys, lambda done: self.watch("compare index", done, None)
                ),
                keys=await wrapping.compare(source.keys, target.keys),
                events=await events.compare(
                    source.events,
                    target.events,
                    self.clock.now(),
                    lambda done: self.watch("compare events", done, None),
                ),
            )


async def _require_quiet(site: Opened, name: str) -> None:
    groups = [group for group, _ in events.consumer_groups()]
    if busy := await site.events.members([*groups, *map(retry_group, groups)]):
        raise CommandError(
            f"services of the {name} are running: {', '.join(sorted(busy))} has members",
            hint="stop ingest first, then every other service, and run this again",
            code=Exit.BUSY,
        )


def _refuse_others(found: Comparison) -> None:
    """What is in the target and not in the source was not brought by a migration of it."""
    for kind, words in (
        (Found.EXTRA, "objects that the source lacks"),
        (Found.DIFFERENT, "other content under keys of the source"),
    ):
        if count := found.faults.counts.get(kind.value):
            first = found.faults.named[kind.value][0]
            raise CommandError(
                f"the target holds {words}: {count}, the first is {first}",
                hint="migrate into an empty store, or one from an earlier run of the same migration",
            )


def _in_the_way(waiting: Waiting) -> CommandError:
    return CommandError(
        f"the source has work in hand: {waiting.describe()}",
        hint="run this again with more --drain-seconds, or start the source, look at its log and wait",
    )


def _require_space(plan: Plan) -> None:
    if plan.free_bytes is not None and plan.free_bytes < plan.missing_bytes + HEADROOM_BYTES:
        raise CommandError(
            f"the target has {size_text(plan.free_bytes)} free and needs"
            f" {size_text(plan.missing_bytes + HEADROOM_BYTES)}",
            hint="make room; what was copied before stays",
            code=Exit.MISCONFIGURED,
        )


def _free_bytes(side: Side) -> int | None:
    if side.engines.s3.endpoint is not None:
        return None
    path = side.engines.platform.data_dir.absolute()
    return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free
