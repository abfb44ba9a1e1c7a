"""`isocenter reindex` is there for an index that is no use: so it must not need a sound one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from isocenter.cli.commands_reindex import set_aside_unusable
from isocenter.common.errors import IndexUnavailable, Misconfigured
from isocenter.common.index.sqlite import SqliteIndex


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def torn(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(len(data) - 100))


def newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


async def make(path: Path) -> None:
    await (await SqliteIndex.open(path)).close()


@pytest.mark.parametrize("spoil", [garbage, torn, newer])
async def test_an_unusable_index_is_kept_beside_a_new_one(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "index.sqlite"
    await make(path)
    spoil(path)
    spoilt = path.read_bytes()

    kept = await set_aside_unusable(path)

    assert kept is not None
    assert spoilt == kept.read_bytes()
    await make(path)


async def test_a_sound_index_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    await make(path)

    assert await set_aside_unusable(path) is None


async def test_an_interrupted_rebuild_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    index = await SqliteIndex.open(path)
    await index.clear()
    await index.close()

    assert await set_aside_unusable(path) is None


async def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs(x)")
    connection.close()

    with pytest.raises(Misconfigured):
        await set_aside_unusable(path)
    assert path.exists()


async def test_an_index_that_cannot_be_reached_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.mkdir()

    with pytest.raises(IndexUnavailable):
        await set_aside_unusable(path)
    assert path.is_dir()
