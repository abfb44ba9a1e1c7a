"""A directory is opened after a death while other processes live, or while an operator has been there."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.objects import shelf
from isocenter.common.objects.local import JOURNALED, LocalObjectStore

SMALL, NAMED = 100, 2 * JOURNALED


def _put_and_die(root: Path, size: int) -> None:
    async def run() -> None:
        store = LocalObjectStore(root)
        async with store.stage() as staging:
            await staging.write(b"x" * size)
            await staging.commit("a/1", {}, pending=True)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def put_and_die(root: Path, size: int) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_put_and_die, args=(root, size))
    child.start()
    child.join()
    assert -signal.SIGKILL == child.exitcode


async def keys(store: LocalObjectStore) -> list[str]:
    return [info.key async for info in store.list()]


@pytest.mark.parametrize(("size", "name"), [(SMALL, "restore"), (NAMED, "restore_named")])
async def test_what_is_deleted_during_a_replay_stays_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, name: str
) -> None:
    living = LocalObjectStore(tmp_path)
    put_and_die(tmp_path, size)
    at_it, on = threading.Event(), threading.Event()
    restore = getattr(shelf.Shelf, name)

    def held_up(*arguments: Any, **more: Any) -> None:
        at_it.set()
        on.wait(10)
        restore(*arguments, **more)

    monkeypatch.setattr(shelf.Shelf, name, held_up)
    opening = asyncio.create_task(asyncio.to_thread(LocalObjectStore, tmp_path))
    await asyncio.to_thread(at_it.wait, 10)
    await living.delete("a/1")
    on.set()
    opened = await opening
    assert [] == await keys(opened)
    assert [] == [info.key async for info in opened.pending()]
    await opened.close()
    await living.close()


async def test_what_is_put_during_a_replay_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = LocalObjectStore(tmp_path)
    put_and_die(tmp_path, NAMED)
    (tmp_path / "objects" / "a" / "1@1").unlink()  # as a loss of power does
    at_it, on = threading.Event(), threading.Event()
    link = os.link

    def held_up(source: Path, target: Path) -> None:
        if not at_it.is_set() and target.name == "1@1":
            at_it.set()
            on.wait(0.5)
        link(source, target)

    monkeypatch.setattr(os, "link", held_up)
    opening = asyncio.create_task(asyncio.to_thread(LocalObjectStore, tmp_path))
    await asyncio.to_thread(at_it.wait, 10)
    put = await living.put("a/1", b"x" * NAMED)
    on.set()
    assert put.identical
    opened = await opening
    assert ["a/1"] == [info.key async for info in opened.pending()]
    assert b"x" * NAMED == await opened.get("a/1")
    await opened.close()
    await living.close()


async def test_a_journal_whose_owner_has_nothing_in_the_staging_area_is_replayed(tmp_path: Path) -> None:
    put_and_die(tmp_path, SMALL)
    (tmp_path / "objects" / "a" / "1@1").unlink()
    for path in (tmp_path / "staging").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    opened = LocalObjectStore(tmp_path)
    assert b"x" * SMALL == await opened.get("a/1")
    await opened.close()
    assert [] == list((tmp_path / "journal").glob("*.journal"))
    assert [] == list((tmp_path / "staging").iterdir())


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_replay_that_fails_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_and_die(tmp_path, SMALL)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    before = _open_files()
    with monkeypatch.context() as patched:
        patched.setattr(shelf.Shelf, "restore", fail)
        with pytest.raises(MemoryError):
            LocalObjectStore(tmp_path)
    assert before == _open_files()
    opened = LocalObjectStore(tmp_path)
    assert ["a/1"] == [info.key async for info in opened.pending()]
    await opened.close()
    assert [] == list((tmp_path / "staging").iterdir())
