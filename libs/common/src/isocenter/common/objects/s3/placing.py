"""How bytes get under a key and stay there: what a commit does, in buckets with versions and without."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from isocenter.common.clock import Clock
from isocenter.common.errors import IntegrityError, IsocenterError, NotFound, StoreUnavailable
from isocenter.common.objects.ports import ObjectInfo, PutResult
from isocenter.common.objects.s3.content import Content
from isocenter.common.objects.s3.errors import Exists
from isocenter.common.objects.s3.first import FirstVersions
from isocenter.common.objects.s3.headers import DAMAGED, OBJECTS, Stamp, decode, encode
from isocenter.common.objects.s3.wire import Found, Wire

SPAN: Final = 4 << 20
"""Bytes of one request when an object is read in pieces."""

_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that is there: what describes it, who wrote it, and which version it is."""

    info: ObjectInfo
    stamp: Stamp
    version: str | None


class Placing:
    """Puts content under keys, and reads it back whole where it must be sure.

    Raises (every method): StoreFull, StoreUnavailable, Misconfigured.
    """

    def __init__(self, wire: Wire, first: FirstVersions, clock: Clock, *, versioned: bool) -> None:
        self._wire = wire
        self._first = first
        self._clock = clock
        self._versioned = versioned
        self._uploads = asyncio.Semaphore(wire.limits.uploads)
        self._locks: dict[str, _Lock] = {}

    async def put(self, key: str, content: Content, sha256: str, metadata: Mapping[str, str]) -> PutResult:
        info = ObjectInfo(key, content.size, sha256, metadata, self._clock.now())
        stamp = Stamp(sha256, secrets.token_hex(8))
        encode(info, stamp)  # refused before anything is sent
        async with self._alone(key):
            for attempt in range(_TRIES):
                with suppress(NotFound):
                    if not self._versioned:
                        return await self._put_name(content, info, stamp)
                    result = await self._put_version(content, info, stamp, glance=attempt == 0)
                    if result is not None:
                        return result
        raise StoreUnavailable("object came and went while it was compared", key=key)

    async def find(self, key: str) -> Kept:
        """Raises NotFound, IntegrityError."""
        version = await self._first.of(key)
        try:
            found = await self._wire.head(OBJECTS + key, version)
        except NotFound:
            version = await self._first.other(key, version)
            found = await self._wire.head(OBJECTS + key, version)
        return _kept(key, found, version)

    async def sound(self, kept: Kept) -> bool:
        """Reads the object: whether it hashes to its digest."""
        digest, size = hashlib.sha256(), kept.info.size
        for start in range(0, size, SPAN):
            _, piece = await self._wire.get(
                OBJECTS + kept.info.key, start, min(start + SPAN, size), kept.version
            )
            await asyncio.to_thread(digest.update, piece)
        return digest.hexdigest() == kept.stamp.sha256

    async def _put_name(self, content: Content, info: ObjectInfo, stamp: Stamp) -> PutResult:
        """Without versions. One request decides where the server looks before it writes."""
        kept: Kept | None
        try:
            if content.size <= self._wire.limits.single:
                await self._send(content, info, stamp, create=True)
                return PutResult(info, created=True, identical=True)
            kept = await self.find(info.key)
        except (Exists, IntegrityError):
            kept = await self._find_or_none(info.key)
        except NotFound:
            await self._send(content, info, stamp)
            return await self._after_parts(info, stamp)
        if kept is not None and kept.stamp.put == stamp.put:
            return PutResult(
                info, created=True, identical=True
            )  # ours: an answer was lost and we asked again
        if kept is not None and await self.sound(kept):
            return _known(kept, info)
        await self._set_aside(info.key)
        await self._send(content, info, stamp)
        return PutResult(info, created=True, identical=True, healed=True)

    async def _after_parts(self, info: ObjectInfo, stamp: Stamp) -> PutResult:
        """The upload of parts is not conditional: who finished last is what is there."""
        kept = await self.find(info.key)
        if kept.info.size != info.size and kept.stamp.put == stamp.put:
            raise StoreUnavailable("the object store kept another size than it was sent", key=info.key)
        if kept.stamp.put == stamp.put:
            return PutResult(info, created=True, identical=True)
        return _known(kept, info)

    async def _put_version(
        self, content: Content, info: ObjectInfo, stamp: Stamp, *, glance: bool
    ) -> PutResult | None:
        """With versions. Every writer adds one, and all see which came first. None: another did, and ours is
        removed; it is looked into before it is relied on.

        With `glance` a HEAD may tell that nothing is there, cheaper than asking for versions. Where a delete
        marker covers an object it is wrong, and another version turns out to be first.
        """
        key = info.key
        if await self._taken(key, glance=glance):
            version = await self._first.look(key)
            found = await self._wire.head(OBJECTS + key, version)
            with suppress(IntegrityError):  # not even its headers are sound
                kept = _kept(key, found, version)
                if kept.stamp.put == stamp.put:
                    return PutResult(info, created=True, identical=True)  # ours: an answer was lost
                if await self.sound(kept):
                    return _known(kept, info)
            stamp = replace(stamp, replaces=version)
        written = await self._send(content, info, stamp)
        first = await self._first.look(key)
        if first == written:
            return PutResult(info, created=True, identical=True, healed=bool(stamp.replaces))
        kept = _kept(key, await self._wire.head(OBJECTS + key, first), first)
        with suppress(IsocenterError):  # at worst bytes stay that nobody reads
            await self._wire.remove(OBJECTS + key, written or "")
        if kept.stamp.put == stamp.put:  # the client asked again because an answer was lost
            return PutResult(info, created=True, identical=True, healed=bool(stamp.replaces))
        return None

    async def _taken(self, key: str, *, glance: bool) -> bool:
        try:
            if glance:
                await self._wire.head(OBJECTS + key)
            else:
                await self._first.look(key)
        except NotFound:
            return False
        return True

    async def _send(
        self, content: Content, info: ObjectInfo, stamp: Stamp, *, create: bool = False
    ) -> str | None:
        name, headers = OBJECTS + info.key, encode(info, stamp)
        if content.size <= self._wire.limits.single:
            return await self._wire.put(name, content.whole(), headers, create=create)
        async with self._uploads:
            return await self._wire.put_parts(name, content.pieces(), content.size, headers)

    async def _set_aside(self, key: str) -> None:
        """Copies what is damaged, as it is, for an operator; without versions its name is about to go."""
        target = f"{DAMAGED}{key}.{secrets.token_hex(4)}"
        with suppress(NotFound):
            await self._wire.copy(OBJECTS + key, target)

    async def _find_or_none(self, key: str) -> Kept | None:
        try:
            return await self.find(key)
        except IntegrityError:
            return None

    @asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """One at a time for each key in this process: fewer versions, and the first large object stays."""
        lock = self._locks.setdefault(key, _Lock())
        lock.users += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[key]


class _Lock:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


def _kept(key: str, found: Found, version: str | None) -> Kept:
    info, stamp = decode(key, found.size, found.headers)
    return Kept(info, stamp, version)


def _known(kept: Kept, offered: ObjectInfo) -> PutResult:
    return PutResult(kept.info, created=False, identical=kept.stamp.sha256 == offered.sha256)
