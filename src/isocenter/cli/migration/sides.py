"""The two ends of a migration, and what is open of one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from isocenter.cli.migration.events import EventLog
from isocenter.cli.migration.events_embedded import EmbeddedEvents
from isocenter.common.clock import SystemClock
from isocenter.common.engines import BUS_FILE, INDEX_FILE, OBJECTS_FOLDER, Engines
from isocenter.common.index.ports import Index
from isocenter.common.keys.study import StudyKeys
from isocenter.common.objects.ports import ObjectStore
from isocenter.common.settings import PlatformSettings


@dataclass(frozen=True, slots=True)
class Side:
    """Where a site is, or will be.

    Attributes:
        engines: what opens it.
        key_file: its site secret. For a cluster it is what the orchestrator mounts.
    """

    engines: Engines
    key_file: Path

    @classmethod
    def embedded(cls, data_dir: Path, key_file: Path) -> Side:
        """A site that lies in a data directory. Raises Misconfigured."""
        return cls(Engines.embedded(_quiet(data_dir, key_file)), key_file)

    @classmethod
    def of_environment(cls, data_dir: Path, key_file: Path) -> Side:
        """The engines that the environment names. Raises Misconfigured."""
        return cls(Engines.load(_quiet(data_dir, key_file)), key_file)

    def places(self) -> dict[str, str]:
        """What holds objects, index and events, for people; no secret in it."""
        engines = self.engines
        folder = engines.platform.data_dir
        uri = engines.mongo.uri.get_secret_value() if engines.mongo.uri else ""
        hosts = uri.partition("://")[2].rpartition("@")[2].partition("/")[0]
        return {
            "objects": f"{engines.s3.endpoint}/{engines.s3.bucket}"
            if engines.s3.endpoint
            else str(folder / OBJECTS_FOLDER),
            "index": f"mongodb://{hosts}/{engines.mongo.database}" if uri else str(folder / INDEX_FILE),
            "events": f"kafka://{engines.kafka.bootstrap}"
            if engines.kafka.bootstrap
            else str(folder / BUS_FILE),
        }


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open of a side."""

    keys: StudyKeys
    store: ObjectStore
    index: Index
    events: EventLog


@contextlib.asynccontextmanager
async def opened(side: Side) -> AsyncIterator[Opened]:
    """Raises Misconfigured, KeysUnavailable, StoreUnavailable, IndexUnavailable, BusUnavailable."""
    async with contextlib.AsyncExitStack() as stack:
        keys = await side.engines.open_study_keys(SystemClock())
        stack.push_async_callback(keys.close)
        store = await side.engines.open_store()
        stack.push_async_callback(store.close)
        index = await side.engines.open_index()
        stack.push_async_callback(index.close)
        events = await open_events(side.engines)
        stack.push_async_callback(events.close)
        yield Opened(keys, store, index, events)


async def open_events(engines: Engines) -> EventLog:
    """Raises Misconfigured: another process owns the log. Raises BusUnavailable."""
    if engines.kafka.bootstrap is None:
        return EmbeddedEvents.open(engines.platform.data_dir / BUS_FILE)
    from isocenter.cli.migration.events_kafka import KafkaEvents  # noqa: PLC0415 - embedded moves need none

    return await KafkaEvents.open(engines.kafka)


def _quiet(data_dir: Path, key_file: Path) -> PlatformSettings:
    """No spans are kept of a migration, and its services say nothing but errors."""
    return PlatformSettings.load(
        data_dir=data_dir, site_key_file=key_file, spans_kept=0, log_level="error", otlp_endpoint=None
    )
