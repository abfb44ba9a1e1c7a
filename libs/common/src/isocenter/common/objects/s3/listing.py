"""Listings: names come a thousand at a time, what stands beside an object with a request for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing

from isocenter.common.errors import IntegrityError, NotFound
from isocenter.common.objects.ports import ObjectInfo
from isocenter.common.objects.s3.admin import Version
from isocenter.common.objects.s3.headers import OBJECTS, decode
from isocenter.common.objects.s3.placing import Placing
from isocenter.common.objects.s3.wire import Wire


class Listing:
    """Objects in ascending key order, `S3Limits.heads` of them asked for at a time."""

    def __init__(self, wire: Wire, placing: Placing, *, versioned: bool) -> None:
        self._wire = wire
        self._placing = placing
        self._versioned = versioned

    async def infos(
        self, prefix: str, start_after: str, damaged: list[str]
    ) -> AsyncGenerator[ObjectInfo, None]:
        """Keys of objects that this store did not write are appended to `damaged`."""
        async with aclosing(self._names(prefix, start_after)) as names:
            async for info in self._described(names, damaged):
                yield info

    async def _names(self, prefix: str, start_after: str) -> AsyncGenerator[tuple[str, str | None], None]:
        """Keys, with the version to read where there is but one."""
        after = OBJECTS + start_after if start_after else ""
        held: list[Version] = []
        async with aclosing(self._wire.walk(OBJECTS + prefix, after, versions=self._versioned)) as pages:
            async for page in pages:
                # Ceph lists the versions of the name itself that it was to begin behind.
                new = [each for each in page if not each.marker and each.name > after]
                found = sorted([*held, *new], key=lambda each: each.name)
                # The versions of the last name may go on in the next page.
                held = [each for each in found if self._versioned and each.name == found[-1].name]
                for name in self._one_each(found[: len(found) - len(held)]):
                    yield name
        for name in self._one_each(held):
            yield name

    def _one_each(self, found: list[Version]) -> Iterable[tuple[str, str | None]]:
        ids: dict[str, list[str]] = {}
        for each in found:
            ids.setdefault(each.name.removeprefix(OBJECTS), []).append(each.id)
        for key, versions in ids.items():
            alone = versions[0] if self._versioned and len(versions) == 1 else None
            yield key, alone

    async def _described(
        self, names: AsyncIterator[tuple[str, str | None]], damaged: list[str]
    ) -> AsyncIterator[ObjectInfo]:
        under_way: deque[tuple[str, asyncio.Task[ObjectInfo | None]]] = deque()
        try:
            async for key, version in names:
                under_way.append((key, asyncio.create_task(self._describe(key, version, damaged))))
                if len(under_way) >= self._wire.limits.heads and (info := await under_way.popleft()[1]):
                    yield info
            while under_way:
                if info := await under_way.popleft()[1]:
                    yield info
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    async def _describe(self, key: str, version: str | None, damaged: list[str]) -> ObjectInfo | None:
        try:
            if version is None:
                return (await self._placing.find(key)).info
            found = await self._wire.head(OBJECTS + key, version)
            return decode(key, found.size, found.headers)[0]
        except NotFound:
            return None  # deleted since it was listed
        except IntegrityError:
            damaged.append(key)
            return None
