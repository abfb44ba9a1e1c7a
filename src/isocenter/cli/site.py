"""Reads a site's data directory from outside the platform, while it runs or after."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from isocenter.cli.errors import CommandError, Exit
from isocenter.common.index.records import StudyRecord
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.settings import PlatformSettings

INDEX = "index.sqlite"


@contextlib.asynccontextmanager
async def open_index(data_dir: Path) -> AsyncIterator[SqliteIndex]:
    """Raises CommandError where no platform has ever run."""
    require(data_dir, INDEX)
    issuer = PlatformSettings.load(data_dir=data_dir).default_issuer
    index = await SqliteIndex.open(data_dir / INDEX, default_issuer=issuer)
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
