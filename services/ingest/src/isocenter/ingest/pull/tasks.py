"""Running a few things at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from isocenter.ingest.pull.domain import PullFailed, PullReason

T = TypeVar("T")


async def each(
    items: Iterable[T] | AsyncIterable[T], work: Callable[[T], Awaitable[None]], at_once: int
) -> None:
    """Calls `work` for every item, at most so many at a time; the first error ends all and is raised."""
    slots = asyncio.Semaphore(at_once)

    async def one(item: T) -> None:
        try:
            await work(item)
        finally:
            slots.release()

    try:
        async with asyncio.TaskGroup() as group:
            async for item in _async(items):
                await slots.acquire()
                group.create_task(one(item))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def watched(pieces: AsyncIterable[T], seconds: float) -> AsyncIterator[T]:
    """The same pieces; PullFailed where one does not come in time."""
    iterator = aiter(pieces)
    while True:
        try:
            async with asyncio.timeout(seconds):
                piece = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise PullFailed(PullReason.TOO_SLOW) from None
        yield piece


async def _async(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
