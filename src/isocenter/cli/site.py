"""Reads a site from outside the platform, while it runs or after: its data directory, or the engines that the
environment names.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from isocenter.cli.errors import CommandError, Exit
from isocenter.common.engines import INDEX_FILE, Engines
from isocenter.common.index.ports import Index
from isocenter.common.index.records import StudyRecord
from isocenter.common.settings import PlatformSettings


def engines_of(data_dir: Path) -> Engines:
    """Raises Misconfigured."""
    return Engines.load(PlatformSettings.load(data_dir=data_dir))


@contextlib.asynccontextmanager
async def open_index(data_dir: Path) -> AsyncIterator[Index]:
    """Raises CommandError where no platform has ever run."""
    engines = engines_of(data_dir)
    if engines.mongo.uri is None:
        require(data_dir, INDEX_FILE)
    index = await engines.open_index()
    try:
        yield index
    finally:
        await index.close()


async def find_study(data_dir: Path, name: str) -> StudyRecord:
    """By Study Instance UID or study key. Raises CommandError where there is none."""
    async with open_index(data_dir) as index:
        study = await index.find_study(name)
    if study is None:
        raise CommandError("no such study in the index", hint="isocenter studies", code=Exit.NOT_FOUND)
    return study


def require(data_dir: Path, name: str) -> None:
    """Raises CommandError where no platform has ever run."""
    if not (data_dir / name).exists():
        raise CommandError(
            f"no platform has run in {data_dir}", hint="isocenter up, or --data-dir", code=Exit.NOT_FOUND
        )
