"""The key of each study: made when its first object comes, unwrapped when one is sealed or opened."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import IsocenterError, KeyMissing, KeyUnusable, Transient
from isocenter.common.keys.ports import KeyTable, KeyWrapper, WrappedKey

if TYPE_CHECKING:
    from isocenter.common.clock import Clock

SECRET_BYTES: Final = 32
REMEMBERED: Final = 4_096
"""Study keys held unwrapped, at most."""
FRESH_SECONDS: Final = 30.0
"""A key is used this long before the table is asked whether it still exists. Destroying one waits for it."""
STALE_SECONDS: Final = 900.0
"""How long a key that was in use stays in use while the table does not answer."""
RETRY_SECONDS: Final = 5.0
"""How long the table is left alone then."""


@dataclass(frozen=True, slots=True)
class StudyKey:
    """A key unwrapped. `secret` is the input key of everything sealed for the study."""

    study_key: str
    key_id: str
    tenant: str
    secret: bytes = field(repr=False)


@dataclass(slots=True)
class _Held:
    key: StudyKey
    asked: float
    """When the table last said that it exists."""
    ask_at: float


class StudyKeys:
    """Keys by study, remembered within bounds; of several who ask for one at once, one asks the table.

    Args:
        table, wrapper: where wrapped keys are, and what unwraps them. Closed with this.
        tenant: bound into new keys.
        clock: for the date of new keys.
        monotonic: seconds, for the age of what is remembered.
        remembered: keys held unwrapped, at most.

    `failed` is called with the error of every key that could not be had.
    """

    def __init__(
        self,
        table: KeyTable,
        wrapper: KeyWrapper,
        *,
        tenant: str,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        remembered: int = REMEMBERED,
    ) -> None:
        self.table = table
        self.wrapper = wrapper
        self.tenant = tenant
        self.failed: Callable[[IsocenterError], None] = lambda error: None
        self._clock = clock
        self._monotonic = monotonic
        self._remembered = remembered
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._asking: dict[tuple[str, bool], asyncio.Task[StudyKey]] = {}

    async def for_sealing(self, study_key: str) -> StudyKey:
        """The study's key, made if it has none.

        Raises:
            KeyUnusable, KeysUnavailable
        """
        return await self._get(study_key, create=True)

    async def for_opening(self, study_key: str) -> StudyKey:
        """The study's key.

        Raises:
            KeyMissing: it has none: destroyed, or the key table is not the one of these objects.
            KeyUnusable, KeysUnavailable
        """
        return await self._get(study_key, create=False)

    async def rewrap(self, row: WrappedKey) -> bool:
        """Wraps a row's key anew; objects are not touched. False if the row changed meanwhile.

        Raises:
            KeyUnusable, KeysUnavailable
        """
        secret = await self._unwrapped(row)
        wrapped, wrapper = await self.wrapper.wrap(secret, row.binding)
        return await self.table.replace(row, replace(row, wrapped=wrapped, wrapper=wrapper))

    async def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        self._held.clear()
        await self.table.close()
        await self.wrapper.close()

    async def _get(self, study_key: str, *, create: bool) -> StudyKey:
        held = self._held.get(study_key)
        if held is not None and self._monotonic() < held.ask_at:
            self._held.move_to_end(study_key)
            return held.key
        asking = self._asking.get((study_key, create))
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask(study_key, held, create=create))
            self._asking[study_key, create] = asking
            asking.add_done_callback(lambda task: self._answered((study_key, create), task))
        # One caller that is cancelled must not take the answer from the others.
        return await asyncio.shield(asking)

    def _answered(self, which: tuple[str, bool], task: asyncio.Task[StudyKey]) -> None:
        del self._asking[which]
        if not task.cancelled() and isinstance(error := task.exception(), IsocenterError):
            self.failed(error)

    async def _ask(self, study_key: str, held: _Held | None, *, create: bool) -> StudyKey:
        try:
            row = await self.table.get(study_key)
        except Transient:
            now = self._monotonic()
            if held is not None and now - held.asked < STALE_SECONDS:
                held.ask_at = now + RETRY_SECONDS
                return held.key
            raise
        if row is None:
            self._held.pop(study_key, None)
            if not create:
                raise KeyMissing("a sealed object's study has no key", study_key=study_key)
            row = await self.table.create(await self._new(study_key))
            held = None
        if held is not None and held.key.key_id == row.key_id:
            key = held.key
        else:
            key = StudyKey(study_key, row.key_id, row.tenant, await self._unwrapped(row))
        now = self._monotonic()
        self._held[study_key] = _Held(key, now, now + FRESH_SECONDS)
        self._held.move_to_end(study_key)
        while len(self._held) > self._remembered:
            self._held.popitem(last=False)
        return key

    async def _new(self, study_key: str) -> WrappedKey:
        key_id = base64.b32encode(os.urandom(16)).decode().rstrip("=").lower()
        row = WrappedKey(study_key, key_id, self.tenant, b"", "", self._clock.now())
        wrapped, wrapper = await self.wrapper.wrap(os.urandom(SECRET_BYTES), row.binding)
        return replace(row, wrapped=wrapped, wrapper=wrapper)

    async def _unwrapped(self, row: WrappedKey) -> bytes:
        secret = await self.wrapper.unwrap(row)
        if len(secret) != SECRET_BYTES:
            raise KeyUnusable("a study key has not the size of one", study_key=row.study_key)
        return secret
