"""Fills the collections: `insert_many` of the documents that `apply` and `settle` write, without the
transactions that write them. Indexes are built afterwards, when the index is first opened.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from benchmarks.index import synthetic
from benchmarks.index.synthetic import Document, Study
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from pymongo.write_concern import WriteConcern
from testbed.mongo import MongoServer

from isocenter.common.index.mongo import MongoIndex
from isocenter.common.index.mongo.schema import INSTANCES, MARKS, SERIES, STUDIES, VERSION
from isocenter.common.index.testing import arrival, silent
from isocenter.common.settings import MongoSettings

BATCH = 1000
IN_FLIGHT = 3
_KEPT = "archives.json"
RECEIVING = 25
"""The newest studies have not settled: what `claim_due` finds."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One size, in a database of its own."""

    label: str
    settings: MongoSettings
    studies: int
    instances: int
    load_seconds: float
    index_seconds: float = 0.0


def settings_for(uri: str, label: str) -> MongoSettings:
    return MongoSettings(uri=SecretStr(uri), database=f"archive-{label}")


async def fill(server: MongoServer, label: str, wanted: int) -> Archive:
    """Whole studies until there are `wanted` instances, into a server that has been started alone."""
    settings = settings_for(server.uri, label)
    studies: list[Study] = []
    total = 0
    while total < wanted:
        one = synthetic.study(len(studies))
        studies.append(one)
        total += one.series * one.instances
    began = time.monotonic()
    client: AsyncMongoClient[Document] = AsyncMongoClient("127.0.0.1", server.port)
    async with client:
        database = client.get_database(settings.database, write_concern=WriteConcern(1))
        await database[MARKS].insert_one({"_id": "schema", "version": VERSION})
        await _insert(database[STUDIES], _studies(studies), 1)
        await _insert(database[SERIES], _series(studies), 1)
        await _insert(database[INSTANCES], _instances(studies), total // BATCH // 10)
        await client.admin.command("fsync")
    return Archive(label, settings, len(studies), total, time.monotonic() - began)


async def build_indexes(archive: Archive) -> Archive:
    began = time.monotonic()
    await (await MongoIndex.open(archive.settings, default_issuer="SITE")).close()
    return replace(archive, index_seconds=time.monotonic() - began)


def keep(server: MongoServer, archives: list[Archive]) -> None:
    """Notes what has been loaded beside the data."""
    rows = [
        [each.label, each.studies, each.instances, each.load_seconds, each.index_seconds] for each in archives
    ]
    (server.folder / _KEPT).write_text(json.dumps({"port": server.port, "archives": rows}))


def kept(server: MongoServer) -> list[Archive]:
    """What was loaded into the server's folder before. The server takes the port that its data name."""
    if not (server.folder / _KEPT).exists():
        return []
    found = json.loads((server.folder / _KEPT).read_text())
    server.port = found["port"]
    return [Archive(label, settings_for(server.uri, label), *rest) for label, *rest in found["archives"]]


def _studies(studies: list[Study]) -> Iterator[Document]:
    newest = len(studies) - RECEIVING
    for one in studies:
        yield synthetic.study_and_series(one, receiving=one.number >= newest)[0]


def _series(studies: list[Study]) -> Iterator[Document]:
    for one in studies:
        yield from synthetic.study_and_series(one, receiving=False)[1]


def _instances(studies: list[Study]) -> Iterator[Document]:
    for one in studies:
        yield from synthetic.instances(one)


async def _insert(collection: Any, documents: Iterator[Document], tell_every: int) -> None:
    running: set[asyncio.Task[Any]] = set()
    done = 0
    while batch := list(islice(documents, BATCH)):
        running.add(asyncio.create_task(collection.insert_many(batch, ordered=False)))
        done += 1
        if len(running) >= IN_FLIGHT:
            finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
        if tell_every > 1 and done % tell_every == 0:
            print(f"  {done * BATCH:,} documents", flush=True)
    for task in running:
        await task


async def check_documents(uri: str) -> None:
    """What is loaded has the fields and types of what the index itself writes.

    Raises:
        ValueError: it has not; the figures would be of another index.
    """
    settings = settings_for(uri, "check")
    one = next(study for study in map(synthetic.study, range(1000)) if study.series > 1)
    index = await MongoIndex.open(settings, default_issuer="SITE")
    try:
        await index.apply(synthetic.records_of(one), arrival(), silent)
        study, series = synthetic.study_and_series(one, receiving=True)
        first = next(synthetic.instances(one))
        for name, made in ((STUDIES, study), (SERIES, series[0]), (INSTANCES, first)):
            written = await index._database.collection(name).find_one({"_id": made["_id"]})  # noqa: SLF001 - compares raw documents
            if _shape(written) != _shape(made):
                raise ValueError(f"the documents loaded into {name} are not those that the index writes")
            for field in ("terms", "items", "attributes", "modalities"):
                if written.get(field) != made.get(field):
                    raise ValueError(f"{field} of {name} is not what the index writes")
    finally:
        await index.close()
        client: AsyncMongoClient[Document] = AsyncMongoClient(uri)
        async with client:
            await client.drop_database(settings.database)


def _shape(document: Document) -> dict[str, str]:
    """Fields and types; long integers come back as a class of their own."""
    return {
        name: "int" if isinstance(value, int) else type(value).__name__ for name, value in document.items()
    }
