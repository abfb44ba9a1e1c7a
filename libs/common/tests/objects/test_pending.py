"""Pending commits: what the next process learns of what this one left undone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from isocenter.common.objects.journal import Journal, NoRoom
from isocenter.common.objects.local import LocalObjectStore


async def pending(root: Path) -> list[str]:
    store = LocalObjectStore(root)
    keys = [info.key async for info in store.pending()]
    await store.close()
    return keys


async def commit(store: LocalObjectStore, key: str, *, pending: bool) -> None:
    async with store.stage() as staging:
        await staging.write(b"payload of " + key.encode())
        await staging.commit(key, {"study_key": "k"}, pending=pending)


def _commit_and_die(root: Path) -> None:
    import asyncio  # noqa: PLC0415 - the child's own loop

    async def run() -> None:
        store = LocalObjectStore(root)
        for number in range(4):
            await commit(store, f"a/{number}", pending=number % 2 == 0)
        await store.confirm(["a/0"])
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def test_a_killed_process_leaves_what_it_did_not_confirm(tmp_path: Path) -> None:
    import asyncio  # noqa: PLC0415 - the test itself is not asynchronous: it starts a process

    child = multiprocessing.get_context("spawn").Process(target=_commit_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert -signal.SIGKILL == child.exitcode

    assert ["a/2"] == asyncio.run(pending(tmp_path))
    assert ["a/2"] == asyncio.run(pending(tmp_path)), "until it is confirmed"


async def test_a_confirmed_object_is_pending_no_more(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    await commit(store, "a/1", pending=True)
    await commit(store, "a/2", pending=True)
    await store.confirm(["a/1", "a/unknown"])
    await store.close()

    later = LocalObjectStore(tmp_path)
    assert ["a/2"] == [info.key async for info in later.pending()]
    await later.confirm(["a/2"])
    assert [] == [info.key async for info in later.pending()]
    assert b"payload of a/2" == await later.get("a/2")
    await later.close()
    assert [] == await pending(tmp_path)


async def test_a_living_process_keeps_its_own_to_itself(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    await commit(store, "a/1", pending=True)

    assert [] == await pending(tmp_path)
    await store.close()
    assert ["a/1"] == await pending(tmp_path)


async def test_a_second_put_of_the_same_object_is_not_pending(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    await commit(store, "a/1", pending=False)
    await commit(store, "a/1", pending=True)
    await store.close()

    assert [] == await pending(tmp_path)


async def test_a_deleted_object_is_forgotten(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    await commit(store, "a/1", pending=True)
    await store.delete("a/1")
    await store.close()

    assert [] == await pending(tmp_path)
    assert [] == list((tmp_path / "pending").iterdir())


async def test_a_death_between_link_and_unlink_owes_nothing(tmp_path: Path) -> None:
    """A commit that was not pending leaves its second name behind if the process dies at that moment."""
    store = LocalObjectStore(tmp_path)
    await commit(store, "a/1", pending=False)
    (final,) = (tmp_path / "objects").rglob("1@*")
    os.link(final, store._shelf._workspace.new_file())
    await store.close()

    assert [] == await pending(tmp_path)
    assert [] == list((tmp_path / "pending").iterdir())


async def test_the_dead_keep_their_names_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what did not go through a journal each process keeps the first name; all come to lie together."""

    def nothing(*_: object, **__: object) -> None:
        raise NoRoom

    monkeypatch.setattr(Journal, "_append", nothing)
    stores = [LocalObjectStore(tmp_path) for _ in range(3)]
    for number, store in enumerate(stores):
        await commit(store, f"a/{number}", pending=True)
    for store in stores:
        store._shelf._workspace.close(leave=True)  # as if it had died
    assert ["a/0", "a/1", "a/2"] == sorted(await pending(tmp_path))
