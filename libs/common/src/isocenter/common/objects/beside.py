"""Work beside the event loop, by threads that are through with their buffers when their caller goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from isocenter.common.objects.ports import Buffer, Last

if TYPE_CHECKING:
    from isocenter.common.objects.ports import PutResult

Result = TypeVar("Result")


async def beside(call: Callable[[], Result]) -> Result:
    """Returns or raises only when the thread is done: a caller that is cancelled reuses its buffers."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


class PlainStaging:
    """`extend` and `conclude` of a `Staging` that has no threads of its own, by its `write` and `commit`."""

    async def extend(self, make: Callable[[], Buffer]) -> None:
        if data := await beside(make):
            await self.write(data)

    async def conclude(self, make: Callable[[], Last], *, pending: bool = False) -> PutResult:
        last = await beside(make)
        if last.data:
            await self.write(last.data)
        return await self.commit(last.key, last.metadata, pending=pending)

    async def write(self, data: Buffer) -> None:
        raise NotImplementedError

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        raise NotImplementedError
