"""Copies objects store to store, each one hashed on its way, and compares two stores.

Both stores list in the order of keys, so one pass over both says what is equal, missing or too much, whatever
their size. Everything is compared by size, SHA-256 and metadata. `stored_at` is the store's own and differs:
the index takes it for the time of reception only where an instance's metadata has none, and there the copy is
given it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from isocenter.cli.migration.iterating import closing
from isocenter.cli.migration.secret import MARKS
from isocenter.common.errors import IntegrityError, NotFound
from isocenter.common.objects.ports import ObjectInfo, ObjectStore
from isocenter.indexer.rebuild import INSTANCES

WORKERS = 8
"""Objects on their way at the same time; each holds a few pieces of 1 MiB."""
NAMED = 100
"""Faults that are named; all are counted."""
_INLINE_BYTES = 64 << 10


class Found(Enum):
    """What the other store has under a key."""

    EQUAL = "equal"
    MISSING = "missing"
    """Only the source has it."""
    EXTRA = "extra"
    """Only the target has it."""
    DIFFERENT = "different"


@dataclass(slots=True)
class Faults:
    """Keys by kind of fault: `NAMED` of each kind, and how many there are."""

    counts: dict[str, int] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, key: str, count: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        named = self.named.setdefault(kind, [])
        if len(named) < NAMED:
            named.append(key)

    def __bool__(self) -> bool:
        return bool(self.counts)


@dataclass(slots=True)
class Tally:
    """A store in figures. The digest is taken over key, size, SHA-256 and metadata of every object."""

    objects: int = 0
    instances: int = 0
    size_bytes: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, info: ObjectInfo) -> None:
        self.objects += 1
        self.instances += info.key.startswith(INSTANCES)
        self.size_bytes += info.size
        fields = [info.key, info.size, info.sha256, dict(sorted(portable(info).items()))]
        self._digest.update(json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


@dataclass(slots=True)
class Comparison:
    """Two stores beside each other."""

    source: Tally = field(default_factory=Tally)
    target: Tally = field(default_factory=Tally)
    missing: int = 0
    missing_bytes: int = 0
    faults: Faults = field(default_factory=Faults)

    @property
    def equal(self) -> bool:
        return not self.faults and not self.missing


Told = Callable[[int, int], None]
"""Objects and bytes done."""


def portable(info: ObjectInfo) -> dict[str, str]:
    """Metadata of the copy: that of the original, and when it was received if only the store knows that."""
    metadata = dict(info.metadata)
    if info.key.startswith(INSTANCES):
        try:
            datetime.fromisoformat(metadata.get("received_at", ""))
        except ValueError:
            metadata["received_at"] = info.stored_at.isoformat()
    return metadata


async def compare(
    source: ObjectStore, target: ObjectStore, told: Told, *, read_back: bool = False
) -> Comparison:
    """Faults: `missing`, `extra`, `different`, and `damaged` ones of the source; with `read_back`, for which
    every byte of the target is read, also `damaged-copy`.

    Raises:
        StoreUnavailable
    """
    result = Comparison()
    async with closing(beside(source, target, result.faults)) as pairs:
        async for found, one, other in pairs:
            if one is not None:
                result.source.add(one)
            if other is not None:
                result.target.add(other)
            if found is Found.MISSING and one is not None:
                result.missing += 1
                result.missing_bytes += one.size
            if found is not Found.EQUAL:
                result.faults.add(found.value, (one or other).key)  # type: ignore[union-attr] # one is there
            elif read_back and other is not None and await _hash(target, other.key) != other.sha256:
                result.faults.add("damaged-copy", other.key)
            told(result.source.objects, result.source.size_bytes)
    return result


async def beside(
    source: ObjectStore, target: ObjectStore, faults: Faults
) -> AsyncIterator[tuple[Found, ObjectInfo | None, ObjectInfo | None]]:
    """Both stores in the order of keys. An object that cannot be read at the source is put down as damaged,
    and its copy, if there is one, counts as equal.
    """
    async with (
        closing(_listed(source, faults, "damaged")) as ours,
        closing(_listed(target, faults, "damaged-copy")) as theirs,
    ):
        one, other = await anext(ours, None), await anext(theirs, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one.key < other.key):
                yield Found.MISSING, one, None
                one = await anext(ours, None)
            elif one is None or other.key < one.key:
                found = Found.EXTRA if await _absent(source, other.key) else Found.EQUAL
                yield found, None, other
                other = await anext(theirs, None)
            else:
                same = (one.size, one.sha256, portable(one)) == (
                    other.size,
                    other.sha256,
                    dict(other.metadata),
                )
                yield Found.EQUAL if same else Found.DIFFERENT, one, other
                one, other = await anext(ours, None), await anext(theirs, None)


async def copy(source: ObjectStore, target: ObjectStore, told: Told) -> Copied:
    """Copies what the target lacks.

    A damaged object stays where it is, is named, and holds nobody up.

    Raises:
        StoreFull, StoreUnavailable: run it again, and it goes on where it ended.
    """
    run = _Copy(source, target, told, Copied(), await _pending(source))
    ignored = Faults()  # the comparison at the end counts them
    tasks: set[asyncio.Task[None]] = set()
    try:
        async with closing(beside(source, target, ignored)) as pairs:
            async for found, one, _ in pairs:
                if one is None:
                    continue
                if found is not Found.MISSING:
                    run.present(one)
                    continue
                if len(tasks) >= WORKERS:
                    done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                tasks.add(asyncio.create_task(run.one(one)))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return run.copied


@dataclass(slots=True)
class Copied:
    """What a run of `copy` did."""

    objects: int = 0
    size_bytes: int = 0
    pending: int = 0
    faults: Faults = field(default_factory=Faults)


@dataclass(slots=True)
class _Copy:
    source: ObjectStore
    target: ObjectStore
    told: Told
    copied: Copied
    pending: frozenset[str]
    done: int = 0
    done_bytes: int = 0

    def present(self, info: ObjectInfo) -> None:
        self.done += 1
        self.done_bytes += info.size
        self.told(self.done, self.done_bytes)

    async def one(self, info: ObjectInfo) -> None:
        try:
            await self._transfer(info)
        except IntegrityError:
            self.copied.faults.add("damaged", info.key)
        except NotFound:
            self.copied.faults.add("gone", info.key)  # deleted since it was listed
        else:
            self.copied.objects += 1
            self.copied.size_bytes += info.size
        self.present(info)

    async def _transfer(self, info: ObjectInfo) -> None:
        digest = hashlib.sha256()
        size = 0
        async with self.target.stage() as staging:
            async with closing(self.source.stream(info.key)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    await _update(digest, piece)
                    await staging.write(piece)
            if (size, digest.hexdigest()) != (info.size, info.sha256):
                raise IntegrityError("object does not hash to its digest", key=info.key)
            pending = info.key in self.pending
            put = await staging.commit(info.key, portable(info), pending=pending)
        self.copied.pending += pending
        if (put.info.size, put.info.sha256) != (info.size, info.sha256):
            self.copied.faults.add(Found.DIFFERENT.value, info.key)


async def _listed(store: ObjectStore, faults: Faults, damaged: str) -> AsyncIterator[ObjectInfo]:
    """Everything that can be listed but the marks of migrations, which belong to their own store."""
    try:
        async with closing(store.list()) as infos:
            async for info in infos:
                if not info.key.startswith(MARKS):
                    yield info
    except IntegrityError as error:
        # Raised after the sound ones; it counts the damaged ones and names the first.
        count = error.ids.get("count", 1)
        faults.add(damaged, str(error.ids.get("first", "")), count if isinstance(count, int) else 1)


async def _pending(store: ObjectStore) -> frozenset[str]:
    keys: set[str] = set()
    try:
        async for info in store.pending():
            keys.add(info.key)
    except IntegrityError:
        pass  # the comparison names it
    return frozenset(keys)


async def _absent(store: ObjectStore, key: str) -> bool:
    try:
        await store.head(key)
    except NotFound:
        return True
    except IntegrityError:
        return False
    return True  # it came after it was looked for: the source is not quiet


async def _hash(store: ObjectStore, key: str) -> str:
    digest = hashlib.sha256()
    try:
        async with closing(store.stream(key)) as pieces:
            async for piece in pieces:
                await _update(digest, piece)
    except (IntegrityError, NotFound):
        return ""
    return digest.hexdigest()


async def _update(digest: hashlib._Hash, piece: bytes) -> None:
    if len(piece) <= _INLINE_BYTES:
        digest.update(piece)
    else:
        await asyncio.to_thread(digest.update, piece)
