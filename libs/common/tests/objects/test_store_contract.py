"""What every object store keeps, whatever it is made of. A new one joins in conftest.py."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import pytest

from isocenter.common.errors import NotFound, StoreUnavailable
from isocenter.common.objects.keys import MAX_METADATA_BYTES, InvalidObject
from isocenter.common.objects.local import PIECE
from isocenter.common.objects.ports import ObjectStore

KEY = "instances/ab/abcdef"
LARGE = bytes(range(256)) * (PIECE // 256 * 3) + b"end"

Opener = Callable[[], Awaitable[ObjectStore]]


async def keys(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix, start_after=start_after)]


@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["empty", "one byte", "3 MiB"])
async def test_what_was_put_comes_back(store: ObjectStore, data: bytes) -> None:
    result = await store.put(KEY, data, {"study_key": "abc", "sender": "MODALITY 1"})

    assert (True, True) == (result.created, result.identical)
    assert data == await store.get(KEY)
    info = await store.head(KEY)
    assert result.info == info
    assert (KEY, len(data), hashlib.sha256(data).hexdigest()) == (info.key, info.size, info.sha256)
    assert {"study_key": "abc", "sender": "MODALITY 1"} == info.metadata


async def test_the_first_content_stays(store: ObjectStore) -> None:
    first = await store.put(KEY, b"first", {"transfer_id": "1"})
    again = await store.put(KEY, b"first", {"transfer_id": "2"})
    other = await store.put(KEY, b"other", {"transfer_id": "3"})

    assert (False, True) == (again.created, again.identical)
    assert (False, False) == (other.created, other.identical)
    assert first.info == again.info == other.info == await store.head(KEY)
    assert await store.get(KEY) == b"first"


async def test_many_writers_of_one_key_create_it_once(store: ObjectStore, kind: str) -> None:
    contents = [b"%d" % (number % 7) for number in range(1000 if kind == "local" else 100)]
    queue = iter(contents)

    async def writer() -> list[tuple[bytes, bool, bool]]:
        outcomes = []
        for data in queue:
            result = await store.put(KEY, data)
            outcomes.append((data, result.created, result.identical))
        return outcomes

    results = [outcome for part in await asyncio.gather(*(writer() for _ in range(20))) for outcome in part]
    kept = await store.get(KEY)

    assert len(contents) == len(results)
    assert [kept] == [data for data, created, _ in results if created]
    assert all(identical == (data == kept) for data, _, identical in results)


async def test_writers_in_several_processes_agree_on_the_first(opener: Opener) -> None:
    """Each store stands for a process: nothing but the bucket or directory connects them."""
    stores = [await opener() for _ in range(4)]
    for number in range(12):
        key = f"instances/{number}"
        contents = [b"%d of %d" % (writer % 3, number) for writer in range(8)]
        results = await asyncio.gather(
            *(stores[writer % 4].put(key, data) for writer, data in enumerate(contents))
        )
        seen = {await store.get(key) for store in stores}

        assert 1 == len(seen)
        (kept,) = seen
        created = [data for data, result in zip(contents, results, strict=True) if result.created]
        assert [kept] == created
        sha256 = hashlib.sha256(kept).hexdigest()
        assert {sha256} == {result.info.sha256 for result in results}
        assert [data == kept for data in contents] == [result.identical for result in results]


async def test_metadata_comes_back_as_it_was(store: ObjectStore) -> None:
    metadata = {
        "empty": "",
        "spaces": "  two  and   three ",
        "percent": "100%20",
        "quotes": "\"'`\\",
        "a_b__c": "=;,&+ /?~{}",
        "space": " ",
    }
    await store.put(KEY, b"x", metadata)
    assert metadata == (await store.head(KEY)).metadata


async def test_nothing_is_there_before_commit_or_after_leaving_without_it(store: ObjectStore) -> None:
    async with store.stage() as staging:
        await staging.write(LARGE)
        assert await keys(store) == []
        with pytest.raises(NotFound):
            await store.head(KEY)
    assert await keys(store) == []
    with pytest.raises(StoreUnavailable):
        await staging.commit(KEY, {})


async def test_a_buffer_may_be_reused_after_write(store: ObjectStore) -> None:
    buffer = bytearray(PIECE + 1)
    async with store.stage() as staging:
        for fill in (1, 2, 3):
            buffer[:] = bytes([fill]) * len(buffer)
            await staging.write(memoryview(buffer)[: len(buffer) - fill])
        buffer[:] = bytes(len(buffer))
        await staging.commit(KEY, {})
    expected = b"".join(bytes([fill]) * (PIECE + 1 - fill) for fill in (1, 2, 3))
    assert expected == await store.get(KEY)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 0),
        (0, 1),
        (5, 17),
        (PIECE - 1, PIECE + 1),
        (0, 1 << 40),
        (len(LARGE), len(LARGE) + 5),
        (1 << 40, 1 << 41),
        (9, 3),
    ],
)
async def test_ranges_are_cut_at_the_end(store: ObjectStore, start: int, end: int) -> None:
    await store.put(KEY, LARGE)

    assert LARGE[start:end] == await store.get_range(KEY, start, end)
    pieces = [piece async for piece in store.stream(KEY, start, end)]
    assert LARGE[start:end] == b"".join(pieces)
    assert all(0 < len(piece) <= PIECE for piece in pieces)


async def test_a_stream_without_end_is_the_whole_object(store: ObjectStore) -> None:
    await store.put(KEY, LARGE)
    assert b"".join([piece async for piece in store.stream(KEY)]) == LARGE


async def test_unknown_keys_are_not_found(store: ObjectStore) -> None:
    await store.put("a/b", b"x")
    for key in (KEY, "a", "a/b/c"):
        for call in (store.get(key), store.get_range(key, 0, 1), store.head(key)):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(NotFound):
            await anext(aiter(store.stream(key)))
        await store.delete(key)
    assert await keys(store) == ["a/b"]


async def test_a_deleted_object_is_gone_and_can_be_put_anew(store: ObjectStore) -> None:
    await store.put(KEY, b"first")
    await store.delete(KEY)

    with pytest.raises(NotFound):
        await store.get(KEY)
    assert await keys(store) == []
    assert (await store.put(KEY, b"second")).created
    assert await store.get(KEY) == b"second"


async def test_list_is_in_key_order_and_resumes(store: ObjectStore) -> None:
    names = ["a", "a-b", "a.b", "a/b", "a/b-c", "a/b/c", "a/b0", "a0", "b/0/1/2", "b/0/1/3", "b_", "c"]
    names += [f"many/{number:04d}" for number in range(150)]
    for name in reversed(names):
        await store.put(name, name.encode())
    expected = sorted(names)

    assert expected == await keys(store)
    for prefix in ("a", "a/", "a/b", "b/0", "b/0/1/3", "many/01", "none"):
        assert [name for name in expected if name.startswith(prefix)] == await keys(store, prefix)
    for position in ("a", "a/", "a/b", "a/b/c", "b/0/1/2", "many/0070", "zzz", "0"):
        assert [name for name in expected if name > position] == await keys(store, start_after=position)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "A", "a b", "a\0", "a\n", "é", "a" * 300]
)
async def test_keys_that_could_leave_their_place_are_refused(store: ObjectStore, key: str) -> None:
    for call in (store.put(key, b"x"), store.get(key), store.head(key), store.delete(key)):
        with pytest.raises(InvalidObject):
            await call
    assert await keys(store) == []


@pytest.mark.parametrize("metadata", [{"Name": "x"}, {"n": "é"}, {"n": "a\nb"}, {"n": "x" * 9000}])
async def test_metadata_that_no_store_takes_is_refused(store: ObjectStore, metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidObject):
        await store.put(KEY, b"x", metadata)
    assert await keys(store) == []


async def test_the_largest_permitted_metadata_comes_back(store: ObjectStore) -> None:
    metadata = {f"name_{number}": "v" * (MAX_METADATA_BYTES // 8 - 6) for number in range(8)}
    await store.put(KEY, b"x", metadata)
    assert metadata == (await store.head(KEY)).metadata


async def test_check_passes_and_leaves_nothing(store: ObjectStore) -> None:
    await store.check()
    assert await keys(store) == []
