"""The key table of a cluster: a collection beside the index, one document per study.

Its database must not be backed up for longer than a destroyed key may come back: see docs/runbook.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from bson import Binary
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from isocenter.common.errors import KeysUnavailable, Misconfigured
from isocenter.common.keys.ports import WrappedKey
from isocenter.common.mongo_uri import client_of
from isocenter.common.settings import MongoSettings

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

COLLECTION: Final = "study_keys"
ANSWER_MS: Final = 5_000
_REFUSED: Final = frozenset({13, 18, 8000})


class MongoKeyTable:
    """A `KeyTable`. Connects at its first use. Reads at the primary what a majority has: a key that another
    replica made is seen, and one that was destroyed is not.
    """

    def __init__(self, settings: MongoSettings, database: str | None = None) -> None:
        """Raises Misconfigured: there is no URI, or it is not one."""
        if settings.uri is None:
            raise Misconfigured(f"{MongoSettings.variable('uri')} is not set: replicas keep study keys there")
        uri = settings.uri.get_secret_value()
        self._client: AsyncMongoClient[dict[str, Any]] = client_of(
            lambda: AsyncMongoClient(
                uri,
                serverSelectionTimeoutMS=ANSWER_MS,
                connectTimeoutMS=ANSWER_MS,
                timeoutMS=ANSWER_MS,
                tz_aware=True,
                appname="isocenter-keys",
            )
        )
        self._keys: AsyncCollection[dict[str, Any]] = self._client[
            database or settings.database
        ].get_collection(
            COLLECTION,
            write_concern=WriteConcern("majority", j=True),
            # Linearizable: a primary that was deposed and does not know it must not show a destroyed key.
            read_concern=ReadConcern("linearizable"),
            read_preference=ReadPreference.PRIMARY,
        )
        self._listed = self._keys.with_options(read_concern=ReadConcern("majority"))

    async def get(self, study_key: str) -> WrappedKey | None:
        with _told():
            found = await self._keys.find_one({"_id": study_key})
        return None if found is None else _row(found)

    async def create(self, row: WrappedKey) -> WrappedKey:
        with _told():
            try:
                await self._keys.insert_one({"_id": row.study_key} | _fields(row))
            except DuplicateKeyError:
                kept = await self._keys.find_one({"_id": row.study_key})
                if kept is None:
                    raise KeysUnavailable("a study key came and went", study_key=row.study_key) from None
                return _row(kept)
        return row

    async def replace(self, old: WrappedKey, new: WrappedKey) -> bool:
        same = {"_id": old.study_key, "key_id": old.key_id, "wrapped": Binary(old.wrapped)}
        with _told():
            return (await self._keys.update_one(same, {"$set": _fields(new)})).matched_count == 1

    async def delete(self, study_key: str, key_id: str) -> bool:
        with _told():
            return (await self._keys.delete_one({"_id": study_key, "key_id": key_id})).deleted_count == 1

    async def list(self) -> AsyncIterator[WrappedKey]:
        with _told():
            async for found in self._listed.find({}).sort("_id", 1):
                yield _row(found)

    async def count(self) -> int:
        with _told():
            return await self._listed.count_documents({})

    async def check(self) -> None:
        with _told():
            await self._listed.find_one({}, {"_id": 1})

    async def close(self) -> None:
        await self._client.close()


def _fields(row: WrappedKey) -> dict[str, Any]:
    return {
        "key_id": row.key_id,
        "tenant": row.tenant,
        "wrapped": Binary(row.wrapped),
        "wrapper": row.wrapper,
        # A Date of BSON has milliseconds: a row must come back as it was written.
        "created_at": row.created_at.astimezone(UTC).isoformat(),
    }


def _row(found: dict[str, Any]) -> WrappedKey:
    return WrappedKey(
        found["_id"],
        found["key_id"],
        found["tenant"],
        bytes(found["wrapped"]),
        found["wrapper"],
        datetime.fromisoformat(found["created_at"]),
    )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the driver become ours, without their text: it quotes documents and addresses."""
    try:
        yield
    except OperationFailure as error:
        if error.code in _REFUSED:
            raise Misconfigured("the database of the study keys refuses these credentials") from None
        raise KeysUnavailable(
            "the key table cannot be used", cause=f"OperationFailure {error.code}"
        ) from None
    except PyMongoError as error:
        raise KeysUnavailable("the key table cannot be used", cause=type(error).__name__) from None
