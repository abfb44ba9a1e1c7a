"""Waiting sets of a cluster, in the database of the index: one small document per waiting event.

Every question is one read of an index, at the primary. There is no copy in memory: another replica may own
the partition, or the retry partition, by now, and a member that was frozen and wakes up must see what its
successor parked. Writes are acknowledged by a majority, so that no election takes them back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bson import Binary
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern

from isocenter.common.bus.parking import Place
from isocenter.common.errors import BusUnavailable, Misconfigured
from isocenter.common.mongo_uri import client_of
from isocenter.common.settings import MongoSettings

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

COLLECTION = "bus_parked"
ANSWER_MS = 5_000
"""Patience with the database: the record stays where it is and is tried again."""
ENTRIES = 10_000
"""Most that one look at all entries reads: what is left is found by the next."""


class MongoParking:
    """Implements `Parking`. Connects at its first use."""

    def __init__(self, settings: MongoSettings) -> None:
        """Raises Misconfigured: there is no URI, or it is not one."""
        if settings.uri is None:
            raise Misconfigured(f"{MongoSettings.variable('uri')} is not set")
        uri = settings.uri.get_secret_value()
        self._client: AsyncMongoClient[dict[str, Any]] = client_of(
            lambda: AsyncMongoClient(
                uri,
                serverSelectionTimeoutMS=ANSWER_MS,
                connectTimeoutMS=ANSWER_MS,
                timeoutMS=ANSWER_MS,
                appname="isocenter-bus",
            )
        )
        self._waiting: AsyncCollection[dict[str, Any]] = self._client[settings.database].get_collection(
            COLLECTION,
            write_concern=WriteConcern("majority"),
            read_concern=ReadConcern("local"),
            read_preference=ReadPreference.PRIMARY,
        )

    async def prepare(self) -> None:
        with _told():
            keys = [("group", 1), ("key", 1), ("ident", 1)]
            await self._waiting.create_index(keys, unique=True, name="group_key_ident")

    async def place(self, group: str, key: bytes, ident: str) -> Place:
        of_key = {"group": group, "key": Binary(key)}
        with _told():
            found = await self._waiting.find_one(of_key, {"_id": 0, "ident": 1})
            if found is not None and found["ident"] != ident:
                found = await self._waiting.find_one(of_key | {"ident": ident}, {"_id": 0, "ident": 1})
                return Place.BEHIND if found is None else Place.WAITING
        return Place.FREE if found is None else Place.WAITING

    async def add(self, group: str, key: bytes, ident: str) -> None:
        with _told(), contextlib.suppress(DuplicateKeyError):
            await self._waiting.insert_one({"group": group, "key": Binary(key), "ident": ident})

    async def discard(self, group: str, key: bytes, ident: str) -> None:
        with _told():
            await self._waiting.delete_one({"group": group, "key": Binary(key), "ident": ident})

    async def studies(self, group: str) -> int:
        stages: list[dict[str, Any]] = [
            {"$match": {"group": group}},
            {"$group": {"_id": "$key"}},
            {"$count": "keys"},
        ]
        with _told():
            counted = await (await self._waiting.aggregate(stages)).to_list()
        return int(counted[0]["keys"]) if counted else 0

    async def entries(self, group: str) -> list[tuple[bytes, str]]:
        with _told():
            found = self._waiting.find({"group": group}, {"_id": 0, "key": 1, "ident": 1}).limit(ENTRIES)
            return [(bytes(one["key"]), one["ident"]) async for one in found]

    async def close(self) -> None:
        await self._client.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the driver become ours, without their text: it quotes documents and addresses."""
    try:
        yield
    except DuplicateKeyError:
        raise
    except PyMongoError as error:
        cause = type(error).__name__
    else:
        return
    raise BusUnavailable("the parked studies cannot be read or written", cause=cause)
