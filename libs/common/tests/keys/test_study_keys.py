"""Study keys: made once, wrapped, bound to their row, and wrapped anew without touching an object."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from isocenter.common.clock import SystemClock
from isocenter.common.errors import IntegrityError, KeyMissing, KeysUnavailable, KeyUnusable, Misconfigured
from isocenter.common.keys import rotation
from isocenter.common.keys.keyfile import KeyFile
from isocenter.common.keys.open import open_wrapper
from isocenter.common.keys.ports import KeyTable, WrappedKey
from isocenter.common.keys.sqlite import SqliteKeyTable
from isocenter.common.keys.study import FRESH_SECONDS, StudyKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.sealed import Sealed
from isocenter.common.objects.sealing import SealContext, Unsealed
from isocenter.common.objects.vault import Vault
from isocenter.common.settings import KeySettings, MongoSettings

CONTEXT = SealContext("study-one", "instance-one")
KEY = "instances/ab/abcdef"
DATA = os.urandom(50_000)


@pytest.fixture(params=["sqlite", "mongo"])
async def table(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyTable]:
    if request.param == "sqlite":
        made: KeyTable = await SqliteKeyTable.open(tmp_path / "keys.sqlite")
    else:
        from isocenter.common.keys.mongo import MongoKeyTable  # noqa: PLC0415 - with the server only

        server = request.getfixturevalue("mongo_server")
        made = MongoKeyTable(MongoSettings(uri=server.uri, database=f"keys_{os.urandom(4).hex()}"))
    yield made
    await made.close()


def study_keys(table: KeyTable, path: Path, **how: Any) -> StudyKeys:
    return StudyKeys(table, KeyFile.load_or_create(path), tenant="default", clock=SystemClock(), **how)


@pytest.fixture
def keys(table: KeyTable, tmp_path: Path) -> StudyKeys:
    return study_keys(table, tmp_path / "wrap.key")


async def test_a_study_has_one_key_whoever_asks_first(table: KeyTable, tmp_path: Path) -> None:
    """Replicas that make the same study's key at once: all of them seal with the same one."""
    replicas = [study_keys(table, tmp_path / "wrap.key") for _ in range(4)]

    made = await asyncio.gather(*(each.for_sealing("study") for each in replicas for _ in range(5)))

    assert 1 == len({key.secret for key in made})
    assert 1 == await table.count()
    assert made[0].secret != (await replicas[0].for_sealing("another")).secret


async def test_what_is_kept_is_not_the_key(keys: StudyKeys, table: KeyTable, tmp_path: Path) -> None:
    secret = (await keys.for_sealing("study")).secret
    row = await table.get("study")
    assert row is not None

    assert secret not in row.wrapped
    files = [path for path in _files(tmp_path) if secret in path.read_bytes()]
    assert [] == files
    assert secret.hex() not in repr(row) + repr(await keys.for_sealing("study"))


async def test_a_study_without_a_key_is_not_opened(keys: StudyKeys) -> None:
    with pytest.raises(KeyMissing):
        await keys.for_opening("study")


async def test_a_destroyed_key_is_forgotten_in_time(table: KeyTable, tmp_path: Path) -> None:
    now = [0.0]
    keys = study_keys(table, tmp_path / "wrap.key", monotonic=lambda: now[0])
    made = await keys.for_sealing("study")
    assert await table.delete("study", made.key_id)
    now[0] = FRESH_SECONDS - 1
    assert made.secret == (await keys.for_opening("study")).secret
    now[0] = FRESH_SECONDS + 1
    with pytest.raises(KeyMissing):
        await keys.for_opening("study")


@pytest.mark.parametrize(
    "change",
    [
        lambda row: replace(row, tenant="another"),
        lambda row: replace(row, key_id="another"),
        lambda row: replace(row, wrapped=row.wrapped[:-1] + bytes([row.wrapped[-1] ^ 1])),
        lambda row: replace(row, wrapped=b""),
        lambda row: replace(row, wrapper="file:0000000000000000"),
    ],
    ids=["tenant", "key id", "wrapped", "empty", "wrapper"],
)
async def test_a_row_that_was_changed_does_not_unwrap(
    table: KeyTable, tmp_path: Path, change: Callable[[WrappedKey], WrappedKey]
) -> None:
    await study_keys(table, tmp_path / "wrap.key").for_sealing("study")
    row = await table.get("study")
    assert row is not None
    assert await table.replace(row, change(row))

    with pytest.raises(KeyUnusable):
        await study_keys(table, tmp_path / "wrap.key").for_opening("study")


async def test_rotation_touches_rows_and_no_object(table: KeyTable, tmp_path: Path) -> None:
    keys = study_keys(table, tmp_path / "wrap.key")
    store = LocalObjectStore(tmp_path / "objects")
    vault = Vault(store, Sealed(keys))
    for number in range(5):
        await vault.put(f"{KEY}{number}", SealContext(f"study-{number}", "one"), DATA)
    stored = [await store.get(f"{KEY}{number}") for number in range(5)]
    before = (tmp_path / "wrap.key").read_bytes()

    assert 5 == await rotation.rotate(keys, lambda done: None)

    after = (tmp_path / "wrap.key").read_bytes()
    assert 32 == len(after)
    assert before != after
    assert stored == [await store.get(f"{KEY}{number}") for number in range(5)]
    assert 0 == (await rotation.status(keys)).behind
    anew = Vault(store, Sealed(study_keys(table, tmp_path / "wrap.key")))
    for number in range(5):
        assert DATA == await anew.get(f"{KEY}{number}", SealContext(f"study-{number}", "one"))
    await store.close()


async def test_a_rotation_that_was_cut_off_goes_on(table: KeyTable, tmp_path: Path) -> None:
    keys = study_keys(table, tmp_path / "wrap.key")
    secrets = [(await keys.for_sealing(f"study-{number}")).secret for number in range(4)]

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await rotation.rotate(keys, stop)
    assert 64 == len((tmp_path / "wrap.key").read_bytes()), "both keys are there until no row needs the old"
    again = study_keys(table, tmp_path / "wrap.key")
    assert secrets == [(await again.for_opening(f"study-{number}")).secret for number in range(4)]

    assert 2 == await rotation.rotate(again, lambda done: None)

    last = study_keys(table, tmp_path / "wrap.key")
    assert secrets == [(await last.for_opening(f"study-{number}")).secret for number in range(4)]


async def test_a_running_reader_survives_a_rotation(table: KeyTable, tmp_path: Path) -> None:
    running = study_keys(table, tmp_path / "wrap.key")
    secret = (await study_keys(table, tmp_path / "wrap.key").for_sealing("study")).secret
    await rotation.rotate(study_keys(table, tmp_path / "wrap.key"), lambda done: None)

    assert secret == (await running.for_opening("study")).secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_file_of_ours_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "wrap.key"
    KeyFile.load_or_create(path)
    assert 0o600 == path.stat().st_mode & 0o777
    path.chmod(mode)

    with pytest.raises(Misconfigured, match=f"mode {mode:04o}"):
        KeyFile(path, mounted=False)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33), bytes(64)], ids=["none", "5", "33", "twice"])
def test_a_key_file_without_whole_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrap.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(Misconfigured, match="key"):
        KeyFile(path, mounted=False)


async def test_a_lost_key_file_is_not_made_anew_over_keys_that_need_it(tmp_path: Path) -> None:
    table = await SqliteKeyTable.open(tmp_path / "keys.sqlite")
    await study_keys(table, tmp_path / "wrap.key").for_sealing("study")
    (tmp_path / "wrap.key").unlink()

    with pytest.raises(Misconfigured, match="backup"):
        await open_wrapper(KeySettings(wrapper="file", file=None), tmp_path / "wrap.key", table)
    assert not (tmp_path / "wrap.key").exists()
    await table.close()


async def test_another_site_cannot_open_and_a_moved_object_does_not_open(tmp_path: Path) -> None:
    table = await SqliteKeyTable.open(tmp_path / "keys.sqlite")
    keys, store = study_keys(table, tmp_path / "wrap.key"), LocalObjectStore(tmp_path / "objects")
    vault = Vault(store, Sealed(keys))
    await vault.put(KEY, CONTEXT, DATA)
    await keys.for_sealing("study-two")

    for other in (SealContext("study-two", "instance-one"), SealContext("study-one", "instance-two")):
        with pytest.raises(IntegrityError):
            await vault.get(KEY, other)
    await store.close()
    await keys.close()


async def test_objects_from_before_sealing_are_read_unless_the_site_says_no(tmp_path: Path) -> None:
    table = await SqliteKeyTable.open(tmp_path / "keys.sqlite")
    keys, store = study_keys(table, tmp_path / "wrap.key"), LocalObjectStore(tmp_path / "objects")
    await Vault(store, Unsealed()).put(KEY, CONTEXT, DATA)

    assert DATA == await Vault(store, Sealed(keys)).get(KEY, CONTEXT)
    with pytest.raises(IntegrityError):
        await Vault(store, Sealed(keys, read_unsealed=False)).get(KEY, CONTEXT)
    await store.close()
    await keys.close()


async def test_a_table_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """A key in use stays in use for a while; a new study has to wait, and nothing is stored in clear."""
    table = await SqliteKeyTable.open(tmp_path / "keys.sqlite")
    now = [0.0]
    keys = study_keys(table, tmp_path / "wrap.key", monotonic=lambda: now[0])
    made = await keys.for_sealing("study")
    await table.close()
    now[0] = FRESH_SECONDS + 1

    assert made.secret == (await keys.for_sealing("study")).secret
    with pytest.raises(KeysUnavailable):
        await keys.for_sealing("another")


def test_a_setting_never_shows_a_token() -> None:
    settings = KeySettings(wrapper="transit", transit_token=SecretStr("hvs.shown"))
    assert "hvs.shown" not in json.dumps(settings.describe()) + repr(settings)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
