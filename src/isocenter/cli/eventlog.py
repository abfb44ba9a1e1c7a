"""Reads a site's event log from outside the platform, while it runs or after."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from isocenter.cli.site import require
from isocenter.common.bus.inspect import EmbeddedInspector, StoredRecord, TopicInspector
from isocenter.common.errors import NotFound

BUS = "bus.sqlite"


@contextlib.asynccontextmanager
async def open_inspector(data_dir: Path) -> AsyncIterator[TopicInspector]:
    """Raises CommandError where no platform has ever run."""
    require(data_dir, BUS)
    inspector = EmbeddedInspector(data_dir / BUS)
    try:
        yield inspector
    finally:
        await inspector.close()


async def records(inspector: TopicInspector, topic: str) -> AsyncIterator[StoredRecord]:
    """Nothing where nothing was ever published there."""
    with contextlib.suppress(NotFound):
        async for record in inspector.read(topic):
            yield record
