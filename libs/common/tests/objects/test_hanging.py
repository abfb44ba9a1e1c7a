"""A disk that never answers a sync: who reads, and who asks how things are, hears something all the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.health import HealthApp, Watched
from isocenter.common.objects import files
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.service import ASGIApp, Health
from isocenter.common.telemetry import noop


@pytest.fixture
def answer() -> threading.Event:
    """When the disk answers at last."""
    return threading.Event()


@pytest.fixture
async def store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: threading.Event
) -> AsyncIterator[LocalObjectStore]:
    """One where every thread that may put does."""
    made = LocalObjectStore(tmp_path)
    await made.put("a/0", b"x")
    write = files.write_durably

    def hang(*arguments: Any) -> None:
        answer.wait(30)
        write(*arguments)

    monkeypatch.setattr(files, "write_durably", hang)
    puts = [asyncio.create_task(made.put(f"a/{number}", b"x")) for number in range(1, 20)]
    await asyncio.sleep(0.2)
    yield made
    answer.set()
    await asyncio.gather(*puts)
    await made.close()


async def test_reads_and_checks_do_not_wait_for_puts(store: LocalObjectStore) -> None:
    async with asyncio.timeout(5):
        assert b"x" == await store.get("a/0")
        assert "a/0" in [info.key async for info in store.list()]
        await store.check()


class Service:
    name = "ingest"
    asgi: ASGIApp | None = None

    def __init__(self, store: LocalObjectStore, answer: threading.Event) -> None:
        self._store = store
        self._answer = answer
        self.asked = 0

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def health(self) -> list[Health]:
        self.asked += 1
        await self._store.run(lambda: self._answer.wait(30))
        return [Health("store", ok=True)]


async def test_a_check_that_cannot_be_cancelled_does_not_keep_the_one_who_asks(
    tmp_path: Path, answer: threading.Event
) -> None:
    store = LocalObjectStore(tmp_path)
    service = Service(store, answer)
    app = HealthApp([Watched(service, noop("ingest"))], check_seconds=0.05)
    started = asyncio.get_running_loop().time()
    for _ in range(3):
        ready, checks = await app.report()
        assert not ready
        assert "no answer" in checks[0][1].detail
    assert asyncio.get_running_loop().time() - started < 5
    assert 1 == service.asked, "another one would hang as well"
    answer.set()
    async with asyncio.timeout(5):
        while not (await app.report())[0]:  # noqa: ASYNC110 - a thread is to end
            await asyncio.sleep(0.01)
    await store.close()
