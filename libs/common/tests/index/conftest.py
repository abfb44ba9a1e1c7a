"""The conformance suite runs over every index: one SQLite file per test, or the MongoDB of this run.

A database is emptied before each test, not made anew: nine collections and their indexes take a second.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import SecretStr
from pymongo import MongoClient

from isocenter.common.index.mongo import MongoIndex
from isocenter.common.index.ports import Index
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.settings import MongoSettings

if TYPE_CHECKING:
    from testbed.mongo import MongoServer

Driver = Literal["pymongo", "motor"]
Opener = Callable[[Path], Awaitable[Index]]
Reopen = Callable[[], Awaitable[Index]]

DRIVERS: dict[str, Driver] = {"mongo": "pymongo", "motor": "motor"}
BACKENDS = ("sqlite", *DRIVERS)


class Databases:
    """The databases of this run on one server."""

    def __init__(self, uri: str) -> None:
        self._client: MongoClient[dict[str, Any]] = MongoClient(uri, serverSelectionTimeoutMS=5000)
        self._names: dict[Driver, str] = {}
        self._uri = uri

    def settings(self, driver: Driver) -> MongoSettings:
        """Of the one database that all tests of a driver use, one after another."""
        name = self._names.setdefault(driver, f"test-{uuid.uuid4().hex[:12]}")
        return MongoSettings(uri=SecretStr(self._uri), database=name, driver=driver)

    def empty(self, driver: Driver) -> MongoSettings:
        settings = self.settings(driver)
        database = self._client[settings.database]
        for name in database.list_collection_names():
            database[name].delete_many({"_id": {"$ne": "schema"}})
        return settings

    def close(self) -> None:
        for name in self._names.values():
            self._client.drop_database(name)
        self._client.close()


@pytest.fixture(scope="session")
def databases(mongo_server: MongoServer) -> Iterator[Databases]:
    every = Databases(mongo_server.uri)
    yield every
    every.close()


def opener_of(backend: str, request: pytest.FixtureRequest) -> Opener:
    if backend == "sqlite":
        return open_sqlite
    databases: Databases = request.getfixturevalue("databases")

    async def open_mongo(folder: Path) -> Index:
        return await MongoIndex.open(databases.settings(DRIVERS[backend]), default_issuer="SITE")

    return open_mongo


async def open_sqlite(folder: Path) -> Index:
    return await SqliteIndex.open(folder / "index.sqlite", default_issuer="SITE")


@pytest.fixture
def mongo_settings(databases: Databases) -> MongoSettings:
    """An empty database, for tests of what only MongoDB has."""
    return databases.empty("pymongo")


@pytest.fixture(params=BACKENDS)
async def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Reopen]:
    """Opens the same index again, as often as asked; all of them are closed at the end."""
    opened: list[Index] = []
    opener = opener_of(request.param, request)
    if request.param in DRIVERS:
        request.getfixturevalue("databases").empty(DRIVERS[request.param])

    async def open_again() -> Index:
        opened.append(await opener(tmp_path))
        return opened[-1]

    yield open_again
    for index in opened:
        await index.close()


@pytest.fixture
async def index(reopen: Reopen) -> Index:
    return await reopen()


@pytest.fixture(scope="session", params=BACKENDS)
def opener(request: pytest.FixtureRequest) -> Opener:
    """Opens an empty index, for tests that run an event loop of their own."""
    opener = opener_of(request.param, request)
    if request.param not in DRIVERS:
        return opener
    databases: Databases = request.getfixturevalue("databases")

    async def open_empty(folder: Path) -> Index:
        databases.empty(DRIVERS[request.param])
        return await opener(folder)

    return open_empty
