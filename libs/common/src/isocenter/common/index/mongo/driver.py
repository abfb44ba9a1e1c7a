"""The one place that knows the driver: PyMongo's asynchronous client, or Motor where a site has it.

Both have the same methods; what differs is which of them are coroutines. Errors leave here in our own words:
the server's quote values.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pymongo
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.errors import (
    BulkWriteError,
    CollectionInvalid,
    DocumentTooLarge,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from isocenter.common.errors import IndexUnavailable, Misconfigured, Permanent
from isocenter.common.mongo_uri import client_of
from isocenter.common.settings import MongoSettings

T = TypeVar("T")
Document = dict[str, Any]

OPERATION_SECONDS = 8.0
"""Limit of one operation, the search for a primary and the driver's own retries included."""
SELECTION_SECONDS = 4.0
UNHURRIED_SECONDS = 24 * 3600.0
TRANSACTION_SECONDS = 12.0
"""After this a transaction that keeps meeting others is given up; the event is delivered again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1

MAJORITY = WriteConcern("majority", j=True)
_TOO_LARGE = frozenset({10334, 17419, 17420})
_NEEDS_REPLICA_SET = 20
_EXISTS = 48
_REFUSED = frozenset({13, 18, 8000})

# Commands hold the values of data sets, and at level DEBUG the driver logs commands.
for _name in ("pymongo.command", "pymongo.serverSelection"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Database:
    """One database: every write is acknowledged by a majority and its journal, every read sees what a
    majority has.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._database = client.get_database(
            name,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=MAJORITY,
        )
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    @classmethod
    async def open(cls, settings: MongoSettings) -> Database:
        """Raises Misconfigured: the URI, the credentials or the extra `motor` are not as they must be, or the
        server is no replica set; IndexUnavailable: it does not answer.
        """
        if settings.uri is None:
            raise Misconfigured(f"{MongoSettings.variable('uri')} is not set")
        uri = settings.uri.get_secret_value()
        client = client_of(lambda: _client(settings.driver, uri))
        database = cls(client, settings.database)
        try:
            async with translated():
                await database.require_replica_set()
        except BaseException:
            await database.close()
            raise
        return database

    async def require_replica_set(self) -> None:
        """Raises Misconfigured: transactions need a replica set or a sharded cluster."""
        hello = await self._client.admin.command("hello")
        if "setName" not in hello and hello.get("msg") != "isdbgrid":
            raise Misconfigured("the index needs a MongoDB replica set: one member is enough")

    def collection(self, name: str) -> Any:
        if self._closed:
            raise IndexUnavailable("the index is closed")
        return self._database[name]

    async def aggregate(self, name: str, pipeline: list[Document], **options: Any) -> list[Document]:
        """All results: the pipeline ends in a limit or a group."""
        cursor = await _finished(self.collection(name).aggregate(pipeline, allowDiskUse=True, **options))
        found: list[Document] = await cursor.to_list(None)
        return found

    async def names(self) -> list[str]:
        """Of the collections."""
        found: list[str] = await self._database.list_collection_names()
        return found

    async def create(self, name: str) -> None:
        """Does nothing if another process was quicker."""
        try:
            await self._database.create_collection(name)
        except CollectionInvalid:
            return
        except OperationFailure as error:
            if error.code != _EXISTS:
                raise

    async def drop(self, name: str) -> None:
        """Waits until no open transaction has touched the collection."""
        await self._database.drop_collection(name)

    async def transaction(self, work: Callable[[Any], Awaitable[tuple[bool, T]]]) -> T:
        """Runs `work(session)` as one transaction until it meets no other: all of it or nothing.

        `work` says first whether there is anything to keep: if not, its writes are undone. It may run
        several times. A caller that is cancelled stops waiting; the transaction runs to its end.

        Raises:
            IndexUnavailable: no primary, or too many others at once.
            Permanent: a document grew beyond what the database takes.
        """
        if self._closed:
            raise IndexUnavailable("the index is closed")
        task = asyncio.create_task(self._transaction(work))
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody does, it is no surprise to the event loop

    async def _transaction(self, work: Callable[[Any], Awaitable[tuple[bool, T]]]) -> T:
        until = time.monotonic() + TRANSACTION_SECONDS
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._attempt(work, until)
            except (PyMongoError, BSONError) as error:
                if not _is_passing(error) or time.monotonic() + pause > until:
                    raise translate(error) from None
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _attempt(self, work: Callable[[Any], Awaitable[tuple[bool, T]]], until: float) -> T:
        session = await _finished(self._client.start_session())
        try:
            await _finished(
                session.start_transaction(
                    read_concern=ReadConcern("snapshot"),
                    write_concern=MAJORITY,
                    read_preference=ReadPreference.PRIMARY,
                )
            )
            keep, result = await work(session)
            if keep:
                await _commit(session, until)
            return result
        finally:
            await _finished(session.end_session())  # aborts what has not been committed

    async def close(self) -> None:
        """Waits for the transactions in hand."""
        if self._closed:
            return
        self._closed = True
        if self._running:
            await asyncio.wait(self._running)
        await _finished(self._client.close())


async def _commit(session: Any, until: float) -> None:
    """A commit whose answer was lost is asked for again: it is the same commit."""
    while True:
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            unknown = error.has_error_label("UnknownTransactionCommitResult")
            if not unknown or time.monotonic() > until:
                raise
        else:
            return


def _client(driver: str, uri: str) -> Any:
    options: dict[str, Any] = {
        "appname": "isocenter",
        "tz_aware": True,
        "timeoutMS": int(OPERATION_SECONDS * 1000),
        "serverSelectionTimeoutMS": int(SELECTION_SECONDS * 1000),
        "connectTimeoutMS": int(SELECTION_SECONDS * 1000),
        "retryWrites": True,
        "retryReads": True,
    }
    if driver == "pymongo":
        return AsyncMongoClient(uri, **options)
    with warnings.catch_warnings():
        # Its makers announce the end of its life: whoever set `driver=motor` decided so knowing it.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="motor")
        try:
            from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise Misconfigured("driver `motor` needs the extra `isocenter-common[motor]`") from error
        client: Any = AsyncIOMotorClient(uri, io_loop=asyncio.get_running_loop(), **options)
        return client


async def _finished(value: Any) -> Any:
    """The result of a call that one driver answers at once and the other in a coroutine."""
    return await value if inspect.isawaitable(value) else value


@contextmanager
def unhurried() -> Iterator[None]:
    """For building indexes, which takes minutes in a large database."""
    with pymongo.timeout(UNHURRIED_SECONDS):  # None would mean: the client's limit
        yield


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """The driver's errors in our own words."""
    try:
        yield
    except (PyMongoError, BSONError) as error:
        raise translate(error) from None


def translate(error: Exception) -> IndexUnavailable | Permanent:
    """The server's own words quote values: only the kind of the error is told."""
    code = error.code if isinstance(error, OperationFailure) else None
    cause = f"{type(error).__name__} {code}" if code is not None else type(error).__name__
    if isinstance(error, DocumentTooLarge) or code in _TOO_LARGE:
        return Permanent("a record is larger than the database takes", cause=cause)
    if code == _NEEDS_REPLICA_SET:
        return Misconfigured("the index needs a MongoDB replica set: one member is enough", cause=cause)
    if code in _REFUSED:
        return Misconfigured("the database refuses these credentials", cause=cause)
    if isinstance(error, BSONError):
        return Permanent("a record cannot be written as BSON", cause=cause)
    return IndexUnavailable("the index cannot be used", cause=cause)


def _is_passing(error: Exception) -> bool:
    """Whether the same transaction may go through when it is tried anew.

    A duplicate key is another transaction that has just inserted the same natural key: the next try sees it.
    """
    if isinstance(error, DuplicateKeyError | BulkWriteError):
        return True
    return isinstance(error, PyMongoError) and error.has_error_label("TransientTransactionError")
