"""The local store where it can fail: killed, full, damaged, shared."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from isocenter.common.errors import IntegrityError, Misconfigured, NotFound, StoreFull, StoreUnavailable
from isocenter.common.objects.local import PIECE, LocalObjectStore

KILLS = 20
KEY = "instances/ab/abcdef"

# Puts objects whose content follows from their key, from several tasks at once; prints each key once durable.
WRITER = """
import asyncio, hashlib, sys
from pathlib import Path
from isocenter.common.objects.local import LocalObjectStore

async def main(root, seed):
    store = LocalObjectStore(Path(root))
    async def task(number):
        for count in range(10_000):
            key = f"run/{seed}-{number}/{count:05d}"
            data = hashlib.sha256(key.encode()).digest() * (70_000 if number == 0 else 500 * number)
            async with store.stage() as staging:
                for start in range(0, len(data), 100_000):
                    await staging.write(data[start : start + 100_000])
                await staging.commit(key, {"seed": seed})
            print(key, flush=True)
    await asyncio.gather(*(task(number) for number in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    made = LocalObjectStore(tmp_path / "store")
    yield made
    await made.close()


def object_file(root: Path, key: str = KEY) -> Path:
    return root / "store" / "objects" / f"{key}@1"


def staged(root: Path) -> list[Path]:
    """Files with bytes that are in no object."""
    found = [path for path in (root / "staging").rglob("*") if path.is_file()]
    return [path for path in found if path.stat().st_size and path.stat().st_nlink == 1]


@pytest.mark.slow
async def test_a_killed_writer_leaves_whole_acknowledged_objects(tmp_path: Path) -> None:
    delays = random.Random(20)
    acknowledged: set[str] = set()
    for kill in range(KILLS):
        with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on this loop
            [sys.executable, "-c", WRITER, str(tmp_path), str(kill)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            await asyncio.sleep(delays.uniform(0, 0.06))
            writer.kill()
            lines = (first + writer.stdout.read()).splitlines(keepends=True)
        acknowledged |= {line.strip() for line in lines if line.endswith("\n")}

    store = LocalObjectStore(tmp_path)
    found = [info async for info in store.list()]
    for info in found:
        data = await store.get(info.key)
        assert data == hashlib.sha256(info.key.encode()).digest() * (len(data) // 32)
        assert info.metadata["seed"] == info.key.split("/")[1].split("-")[0]
    assert len(acknowledged) >= KILLS
    assert acknowledged <= {info.key for info in found}
    assert staged(tmp_path) == []
    await store.close()


def run_python(code: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


OPEN = """
import sys
from pathlib import Path
from isocenter.common.objects.local import LocalObjectStore
LocalObjectStore(Path(sys.argv[1]))
"""

FULL = """
import asyncio, resource, sys
from pathlib import Path
from isocenter.common.errors import StoreFull
from isocenter.common.objects.local import LocalObjectStore

async def main():
    store = LocalObjectStore(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    await store.put("a/small", b"x" * 1000)
    for size in (1 << 20, (1 << 20) - 10, 5 << 20):  # no room for trailer, half of it, payload
        try:
            await store.put(f"a/{size}", bytes(size))
        except StoreFull:
            print("full")
    await store.put("b/small", b"y" * 1000)
    print(*[info.key async for info in store.list()])
    left = Path(sys.argv[1], "staging").rglob("*")
    print([path.name for path in left if path.is_file() and path.stat().st_size])
    await store.close()

asyncio.run(main())
"""


def test_a_full_disk_is_store_full_and_nothing_is_visible(tmp_path: Path) -> None:
    assert run_python(FULL, str(tmp_path)).splitlines() == ["full"] * 3 + ["a/small b/small", "[]"]


FLAT = """
import asyncio, resource, sys
from pathlib import Path
from isocenter.common.objects.local import LocalObjectStore

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def main():
    store = LocalObjectStore(Path(sys.argv[1]))
    await store.put("warm/up", bytes(3 << 20))
    async for _ in store.stream("warm/up"):
        pass
    before = peak()
    piece = memoryview(bytes(128 << 10))
    async with store.stage() as staging:
        for _ in range(1600):
            await staging.write(piece)
        await staging.commit("large/object", {})
    size = 0
    async for data in store.stream("large/object"):
        size += len(data)
    print(size, peak() - before)
    await store.close()

asyncio.run(main())
"""


def test_memory_stays_flat_for_a_large_object(tmp_path: Path) -> None:
    size, growth_kib = map(int, run_python(FLAT, str(tmp_path)).split())
    assert size == 1600 * (128 << 10)
    assert growth_kib < 16 << 10


@pytest.mark.parametrize("position", [0, 1000, PIECE + 5])
async def test_a_flipped_bit_is_found(store: LocalObjectStore, tmp_path: Path, position: int) -> None:
    await store.put(KEY, bytes(PIECE * 2))
    flip(object_file(tmp_path), position)

    with pytest.raises(IntegrityError):
        await store.get(KEY)
    with pytest.raises(IntegrityError):
        [piece async for piece in store.stream(KEY)]


@pytest.mark.parametrize("from_end", [1, 9, 50, 80, 100])
async def test_a_damaged_trailer_is_found_and_hides_no_other_object(
    store: LocalObjectStore, tmp_path: Path, from_end: int
) -> None:
    for key in ("a/1", "a/2", "a/3"):
        await store.put(key, b"payload")
    path = object_file(tmp_path, "a/2")
    flip(path, path.stat().st_size - from_end)

    for call in (store.get("a/2"), store.head("a/2"), store.get_range("a/2", 0, 1)):
        with pytest.raises(IntegrityError):
            await call
    listing = aiter(store.list())
    assert ["a/1", "a/3"] == [(await anext(listing)).key for _ in range(2)]
    with pytest.raises(IntegrityError, match="first=a/2"):
        await anext(listing)


@pytest.mark.parametrize("size", [0, 1, 83, 84, 1000])
async def test_a_cut_file_is_no_object(store: LocalObjectStore, tmp_path: Path, size: int) -> None:
    await store.put(KEY, bytes(2000))
    os.truncate(object_file(tmp_path), size)
    with pytest.raises(IntegrityError):
        await store.get_range(KEY, 0, 1)


def set_aside(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "store" / "damaged").iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("position", [0, 6, 7, 30, -1, -60])
async def test_a_damaged_object_is_healed_by_putting_it_again(
    store: LocalObjectStore, tmp_path: Path, position: int
) -> None:
    """Anywhere in payload or trailer. The damaged file is kept for an operator."""
    await store.put(KEY, b"payload", {"a": "b"})
    path = object_file(tmp_path)
    flip(path, position % path.stat().st_size)
    damaged = path.read_bytes()

    result = await store.put(KEY, b"payload", {"a": "b"})

    assert (result.created, result.identical, result.healed) == (True, True, True)
    assert b"payload" == await store.get(KEY)
    assert [damaged] == [aside.read_bytes() for aside in set_aside(tmp_path)]
    again = await store.put(KEY, b"payload", {"a": "b"})
    assert (again.created, again.healed) == (False, False)


async def test_many_heal_a_damaged_object_once(store: LocalObjectStore, tmp_path: Path) -> None:
    for key in (f"a/{number}" for number in range(20)):
        await store.put(key, b"payload")
        flip(object_file(tmp_path, key), 0)

        results = await asyncio.gather(*(store.put(key, b"payload") for _ in range(20)))

        assert 1 == sum(result.created for result in results)
        assert b"payload" == await store.get(key)
    assert 20 == len(set_aside(tmp_path))


async def test_a_file_moved_to_another_key_is_found(store: LocalObjectStore, tmp_path: Path) -> None:
    await store.put("a/1", b"one")
    object_file(tmp_path, "a/1").rename(object_file(tmp_path, "a/2"))
    with pytest.raises(IntegrityError):
        await store.get("a/2")


async def test_only_the_owner_can_read(store: LocalObjectStore, tmp_path: Path) -> None:
    await store.put(KEY, b"x")
    async with store.stage() as staging:
        await staging.write(bytes(PIECE))
        modes = {
            (path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "store").rglob("*")
        }
        assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert modes == {(True, 0o700), (False, 0o600)}


async def test_the_work_of_a_living_process_is_not_swept(store: LocalObjectStore, tmp_path: Path) -> None:
    async with store.stage() as staging:
        await staging.write(bytes(PIECE))
        run_python(
            OPEN,
            str(tmp_path / "store"),
        )
        await staging.commit(KEY, {})
    assert await store.get(KEY) == bytes(PIECE)


async def test_two_stores_on_one_directory_agree(store: LocalObjectStore, tmp_path: Path) -> None:
    other = LocalObjectStore(tmp_path / "store")
    assert (await store.put(KEY, b"one")).created
    again = await other.put(KEY, b"one")
    assert (False, True) == (again.created, again.identical)
    await store.delete(KEY)
    with pytest.raises(NotFound):
        await other.get(KEY)
    await other.close()


async def test_a_cancelled_writer_leaves_nothing_half_done(store: LocalObjectStore, tmp_path: Path) -> None:
    async def write(number: int) -> None:
        async with store.stage() as staging:
            await staging.write(bytes([number]) * (2 * PIECE))
            await staging.commit(f"a/{number}", {})

    for number in range(20):
        task = asyncio.create_task(write(number))
        await asyncio.sleep(number / 2000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async for info in store.list():
        assert await store.get(info.key) == bytes([int(info.key[2:])]) * (2 * PIECE)
    assert staged(tmp_path / "store") == []


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.put(KEY, b"x")
    assert staged(tmp_path) == []


def test_a_file_in_the_way_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(Misconfigured):
        LocalObjectStore(tmp_path / "store")


async def test_a_directory_that_went_away_is_unavailable(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "gone")
    with pytest.raises(StoreUnavailable):
        await store.put(KEY, bytes(2 * PIECE))
    with pytest.raises(StoreUnavailable):
        await store.check()
    (tmp_path / "gone").rename(tmp_path / "store")
    await store.check()
    assert (await store.put(KEY, b"x")).created
    await store.close()


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


async def test_a_staging_that_ran_full_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback of the failed write is alive while the staging is left, as it is in a real handler."""
    store = LocalObjectStore(tmp_path)

    def full(descriptor: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        raise OSError(errno.ENOSPC, f"no space for {len(view)}")

    monkeypatch.setattr("isocenter.common.objects.local.write_all", full)

    async def overfill() -> None:
        async with store.stage() as staging:
            await staging.write(bytes(PIECE - 1))
            await staging.write(bytes(2))

    with pytest.raises(StoreFull):
        await overfill()

    assert staged(tmp_path) == []
    await store.close()
