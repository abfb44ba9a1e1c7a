"""From settings to a key table and a wrapper."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from isocenter.common.errors import Misconfigured
from isocenter.common.keys.keyfile import KeyFile
from isocenter.common.keys.sqlite import SqliteKeyTable

if TYPE_CHECKING:
    from pathlib import Path

    from isocenter.common.keys.ports import KeyTable, KeyWrapper
    from isocenter.common.settings import KeySettings, MongoSettings


async def open_table(settings: KeySettings, mongo: MongoSettings, path: Path) -> KeyTable:
    """Raises Misconfigured, KeysUnavailable."""
    if mongo.uri is None:
        return await SqliteKeyTable.open(path)
    from isocenter.common.keys.mongo import MongoKeyTable  # noqa: PLC0415 - embedded sites load no client

    return MongoKeyTable(mongo, settings.database)


async def open_wrapper(settings: KeySettings, path: Path, table: KeyTable) -> KeyWrapper:
    """Raises Misconfigured: what wraps is not there, or a key file of ours was lost."""
    if settings.wrapper == "transit":
        from isocenter.common.keys.transit import Transit  # noqa: PLC0415 - an HTTP client for who needs it

        return Transit(settings)
    if settings.wrapper == "kms":
        try:
            from isocenter.common.keys.kms import AwsKms  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise Misconfigured("wrapper `kms` needs the extra `isocenter-common[kms]`") from error
        return AwsKms(settings)
    if settings.file is not None:
        return await asyncio.to_thread(KeyFile, path, mounted=True)
    if not await asyncio.to_thread(path.exists) and await table.count():
        raise Misconfigured(
            f"wrapping key {path} is gone and study keys need it: bring it back from a backup"
        )
    return await asyncio.to_thread(KeyFile.load_or_create, path)
