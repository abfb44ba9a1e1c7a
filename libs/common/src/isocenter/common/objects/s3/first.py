"""Which version of a key is the object, where a bucket keeps versions: the first one, for ever.

Some servers, Ceph's among them, ignore `If-None-Match` in a bucket with versions: two writers of one key both
succeed, and the newest version is what a plain GET returns. But the server puts the versions in one order,
and everybody sees the same order. So the object is the oldest version that the store itself wrote, unless a
later one says that it replaces it (a healed object). Readers name that version; what anybody writes or marks
as deleted afterwards changes nothing for them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from isocenter.common.errors import IntegrityError, NotFound
from isocenter.common.objects.s3.headers import OBJECTS, decode
from isocenter.common.objects.s3.wire import Wire

_REMEMBERED: Final = 50_000


class FirstVersions:
    """Remembers what it found out: the first version stays the first until it is healed or deleted."""

    def __init__(self, wire: Wire, *, versioned: bool) -> None:
        self._wire = wire
        self._versioned = versioned
        self._known: OrderedDict[str, str] = OrderedDict()

    async def of(self, key: str) -> str | None:
        """The version to read; None in a bucket without versions.

        Raises:
            NotFound, StoreUnavailable
        """
        if not self._versioned:
            return None
        known = self._known.get(key)
        return known if known is not None else await self.look(key)

    async def look(self, key: str) -> str:
        """The same, asking the server. Raises NotFound, StoreUnavailable."""
        name = OBJECTS + key
        ids = [each.id for each in await self._wire.versions(name) if not each.marker]
        if not ids:
            self.forget(key)
            raise NotFound("no such object", key=key)
        first = ids[0] if len(ids) == 1 else await self._first_of(key, ids)
        self.remember(key, first)
        return first

    async def other(self, key: str, gone: str | None) -> str:
        """The version to read where `gone` was not found: another process deleted the object and put it anew.

        Raises:
            NotFound: there is no other. Servers are known to list what they cannot find.
            StoreUnavailable
        """
        if gone is None or (version := await self.look(key)) == gone:
            self.forget(key)
            raise NotFound("no such object", key=key)
        return version

    def remember(self, key: str, version: str) -> None:
        self._known[key] = version
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def forget(self, key: str) -> bool:
        """Whether there was something to forget."""
        return self._known.pop(key, None) is not None

    async def _first_of(self, key: str, newest_first: list[str]) -> str:
        replaced: set[str] = set()
        ours: list[str] = []
        for version in reversed(newest_first):
            try:
                found = await self._wire.head(OBJECTS + key, version)
                _, stamp = decode(key, found.size, found.headers)
            except (NotFound, IntegrityError):
                continue  # deleted since, or written by a stranger
            ours.append(version)
            if stamp.replaces:
                replaced.add(stamp.replaces)
        return next((version for version in ours if version not in replaced), (ours or newest_first[-1:])[-1])
