"""The loops rest while nothing can be due, and wake when something is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from isocenter.common.index.ports import Backlog
from isocenter.indexer.pause import LONGEST_SECONDS, Pause, rest_seconds

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("backlog", "expected"),
    [
        (Backlog(0, 0), LONGEST_SECONDS),
        (Backlog(0, 1), 1.0),
        (Backlog(1, 0, settle_at=NOW + timedelta(seconds=3)), 3.0),
        (Backlog(1, 0, settle_at=NOW + timedelta(hours=3)), LONGEST_SECONDS),
        (Backlog(1, 0, settle_at=NOW + timedelta(milliseconds=1)), 0.5),
        (Backlog(1, 0, settle_at=NOW - timedelta(hours=1)), 0.5),
        (Backlog(1, 9, settle_at=NOW + timedelta(seconds=3)), 1.0),
    ],
)
def test_how_long_is_known_from_what_waits(backlog: Backlog, expected: float) -> None:
    assert rest_seconds(backlog, NOW, soon=0.5, retry=1.0) == pytest.approx(expected)


async def rested(pause: Pause, seconds: float, meanwhile: Callable[[], None]) -> float:
    """Seconds of the loop's own clock that a rest took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_soon(meanwhile)
    await pause.rest(seconds)
    return loop.time() - began


async def test_work_ends_a_rest_at_once() -> None:
    pause = Pause(soon=30.0)
    pause.begin()
    assert await rested(pause, 60.0, pause.end) < 20


async def test_news_shorten_a_rest_and_do_not_lengthen_one() -> None:
    pause = Pause(soon=0.05)
    pause.begin()
    assert 0.04 < await rested(pause, 60.0, pause.shorten) < 20
    slow = Pause(soon=60.0)
    slow.begin()
    assert await rested(slow, 0.05, slow.shorten) < 20


async def test_what_came_while_looking_is_not_forgotten() -> None:
    pause = Pause(soon=0.01)
    pause.begin()
    pause.shorten()
    assert await rested(pause, 60.0, lambda: None) < 20
    pause = Pause(soon=30.0)
    pause.begin()
    pause.end()
    assert await rested(pause, 60.0, lambda: None) < 20
