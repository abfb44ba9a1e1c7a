"""Commits that something must follow, remembered in the bucket itself.

`pending/<owner>/<n>` lists keys that a process is about to commit: one small object for all commits that came
while the previous one was being written, in flight together with the objects themselves. A commit is not
reported before the marker that lists it is durable. `pending/<owner>/alive` is rewritten every few seconds;
when nothing of an owner has changed for `S3Limits.silent`, by the server's clock, its process counts as gone.
That may be wrong (a process that was stopped for longer): then two announce the same objects, which says
nothing new. A closed store leaves `pending/left/<n>` instead, and no sign of life is waited for.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from isocenter.common.errors import IntegrityError, IsocenterError, NotFound, StoreUnavailable
from isocenter.common.objects.s3.admin import Version
from isocenter.common.objects.s3.headers import PENDING
from isocenter.common.objects.s3.wire import Wire

_LEFT: Final = "left"
_ALIVE: Final = "alive"
_KEYS_PER_MARKER: Final = 2000
_WRITERS: Final = 2
_DISCARD_AT: Final = 64


@dataclass
class _Marker:
    """One object in the bucket, and the keys in it that are not confirmed yet."""

    name: str
    version: str
    open: set[str] = field(default_factory=set)


class Markers:
    """Those of this process are known by key; those of dead ones are read from the bucket."""

    def __init__(self, wire: Wire, *, versioned: bool) -> None:
        self._wire = wire
        self._versioned = versioned
        self._owner = secrets.token_hex(8)
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._writers: set[asyncio.Task[None]] = set()
        self._markers: dict[str, list[_Marker]] = defaultdict(list)
        self._notes: Counter[str] = Counter()
        """How many commits noted a key of `_markers`."""
        self._names: set[str] = set()
        self._done: list[_Marker] = []
        self._count = 0
        self._beating: asyncio.Task[None] | None = None
        self._discarding: asyncio.Task[None] | None = None

    async def note(self, key: str) -> None:
        """Returns when a marker that lists the key is durable. Raises StoreFull, StoreUnavailable."""
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat())
        noted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, noted))
        if len(self._writers) < _WRITERS:
            task = asyncio.create_task(self._write())
            self._writers.add(task)
            task.add_done_callback(self._writers.discard)
        await noted

    def confirm(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._notes.pop(key, None)
            for marker in self._markers.pop(key, ()):
                marker.open.discard(key)
                if not marker.open:
                    self._names.discard(marker.name)
                    self._done.append(marker)
        if len(self._done) >= _DISCARD_AT and (self._discarding is None or self._discarding.done()):
            self._discarding = asyncio.create_task(self._discard())

    def withdraw(self, key: str) -> None:
        """One commit takes back what it noted; the key stays pending for as long as another's note stands."""
        self._notes[key] -= 1
        if self._notes[key] <= 0:
            self.confirm([key])

    async def left(self) -> AsyncGenerator[str, None]:
        """Keys of processes that are gone, each once. They are this store's to confirm from now on.

        Raises:
            StoreUnavailable
            IntegrityError: at the very end, a marker could not be read.
        """
        seen: set[str] = set()
        damaged = 0
        await self._discard()  # else what was confirmed here would be found once more
        for each in await self._dead():
            try:
                _, body = await self._wire.get(each.name, version=each.id or None)
                keys = [str(key) for key in json.loads(body)]
            except NotFound:
                continue
            except ValueError:
                damaged += 1
                continue
            if each.name not in self._names:
                self._adopt(_Marker(each.name, each.id), keys)
            for key in keys:
                if key in self._markers and key not in seen:
                    seen.add(key)
                    yield key
        if damaged:
            raise IntegrityError("lists of pending objects cannot be read", count=damaged)

    async def close(self) -> None:
        """Leaves what is open for others to find at once. Raises StoreUnavailable: they find it later."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        await asyncio.gather(*self._writers, return_exceptions=True)
        if self._discarding is not None:
            await asyncio.gather(self._discarding, return_exceptions=True)
        keys = sorted(self._markers)
        for start in range(0, len(keys), _KEYS_PER_MARKER):
            await self._put(
                f"{PENDING}{_LEFT}/{secrets.token_hex(12)}", keys[start : start + _KEYS_PER_MARKER]
            )
        own = {marker.name: marker for markers in self._markers.values() for marker in markers}
        self._done += own.values()
        await self._discard()
        with suppress(NotFound):
            for version in await self._wire.versions(self._alive) if self._versioned else [None]:
                await self._wire.remove(self._alive, version.id if version else "")

    @property
    def _alive(self) -> str:
        return f"{PENDING}{self._owner}/{_ALIVE}"

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_KEYS_PER_MARKER], self._waiting[_KEYS_PER_MARKER:]
            self._count += 1
            keys = [key for key, _ in batch]
            try:
                marker = await self._put(f"{PENDING}{self._owner}/{self._count:012d}", keys)
            except IsocenterError as error:
                for _, noted in batch:
                    if not noted.done():
                        noted.set_exception(error)
                continue
            self._adopt(marker, keys)
            for _, noted in batch:
                if not noted.done():
                    noted.set_result(None)

    def _adopt(self, marker: _Marker, keys: list[str]) -> None:
        marker.open = set(keys)
        self._names.add(marker.name)
        for key in marker.open:
            self._markers[key].append(marker)
        self._notes.update(keys)

    async def _put(self, name: str, keys: list[str]) -> _Marker:
        version = await self._wire.put(name, json.dumps(keys).encode())
        return _Marker(name, version or "")

    async def _discard(self) -> None:
        """Removes markers with nothing open, in one request. Those it cannot remove name confirmed objects:
        at worst they are announced again.
        """
        done, self._done = self._done, []
        with suppress(IsocenterError):
            await self._wire.remove_many([(each.name, each.version) for each in done])

    async def _beat(self) -> None:
        before: str | None = None
        while True:
            with suppress(IsocenterError):
                version = await self._wire.put(self._alive, b"")
                if before is not None and self._versioned:
                    await self._wire.remove(self._alive, before)
                before = version
            await asyncio.sleep(self._wire.limits.beat)

    async def _dead(self) -> list[Version]:
        """Markers of owners that are gone, oldest first."""
        owners: dict[str, list[Version]] = defaultdict(list)
        async for page in self._wire.walk(PENDING, versions=self._versioned):
            for each in page:
                if not each.marker:
                    owners[each.name.removeprefix(PENDING).partition("/")[0]].append(each)
        owners.pop(self._owner, None)
        left = owners.pop(_LEFT, [])
        if owners:
            silent = self._wire.limits.silent
            now = await self._server_time()
            for versions in owners.values():
                if (now - max(each.modified for each in versions)).total_seconds() >= silent:
                    left += [each for each in versions if not each.name.endswith(f"/{_ALIVE}")]
                    self._done += [
                        _Marker(each.name, each.id) for each in versions if each.name.endswith(f"/{_ALIVE}")
                    ]
        return sorted(left, key=lambda each: (each.modified, each.name))

    async def _server_time(self) -> datetime:
        try:
            return await self._wire.blocking(
                "head", "", lambda: self._wire.admin.server_time(self._wire.bucket)
            )
        except KeyError:
            raise StoreUnavailable("the object store does not say what time it is") from None
