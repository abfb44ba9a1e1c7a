"""Reads a site's events from outside the platform, while it runs or after."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from isocenter.cli.site import engines_of, require
from isocenter.common.bus.inspect import StoredRecord, TopicInspector
from isocenter.common.engines import BUS_FILE
from isocenter.common.errors import NotFound


@contextlib.asynccontextmanager
async def open_inspector(data_dir: Path) -> AsyncIterator[TopicInspector]:
    """Raises CommandError where no platform has ever run."""
    engines = engines_of(data_dir)
    if engines.kafka.bootstrap is None:
        require(data_dir, BUS_FILE)
    transport = engines.open_transport()
    try:
        inspector = transport.inspector()
        try:
            yield inspector
        finally:
            await inspector.close()
    finally:
        await transport.close()


async def records(inspector: TopicInspector, topic: str) -> AsyncIterator[StoredRecord]:
    """Nothing where nothing was ever published there."""
    with contextlib.suppress(NotFound):
        async for record in inspector.read(topic):
            yield record
