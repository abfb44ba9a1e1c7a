"""References to the files of an archive: what they show, what they refuse, what replaces them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from isocenter.common.errors import IntegrityError, Misconfigured, NotFound, StoreUnavailable
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.adopted import CHUNK, AdoptedStore, with_archives
from isocenter.common.objects.archives import ARCHIVES_FILE, Archives, DirectoryArchive, Found, Passed, Place
from isocenter.common.objects.local import LocalObjectStore

KEY = "instances/a/abc"
PAYLOAD = os.urandom(2 * CHUNK + 12_345)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "DOE^JANE.dcm").write_bytes(PAYLOAD)
    return folder


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    store = LocalObjectStore(tmp_path / "objects")
    yield store
    await store.close()


@pytest.fixture
def store(tmp_path: Path, root: Path, behind: LocalObjectStore) -> AdoptedStore:
    archives = Archives(tmp_path)
    archives.add(Place(str(root)))
    return AdoptedStore(behind, archives, SiteKeys(bytes(32)))


async def refer(store: AdoptedStore, root: Path, key: str = KEY, payload: bytes = PAYLOAD) -> None:
    (found,) = [each async for each in DirectoryArchive(root).files()]
    assert isinstance(found, Found)
    async with store.refer(str(root), found) as staging:
        for start in range(0, len(payload), 700_001):
            await staging.write(payload[start : start + 700_001])
        await staging.commit(key, {"received_at": "then"}, pending=True)


async def test_a_reference_looks_like_what_it_refers_to(store: AdoptedStore, root: Path) -> None:
    await refer(store, root)

    info = await store.head(KEY)
    assert len(PAYLOAD) == info.size
    assert PAYLOAD == await store.get(KEY)
    assert PAYLOAD == b"".join([piece async for piece in store.stream(KEY)])
    assert [info] == [each async for each in store.list("instances/")]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 0),
        (0, 1),
        (5, CHUNK),
        (CHUNK - 1, CHUNK + 1),
        (7, 2 * CHUNK + 9),
        (CHUNK, 1 << 40),
        (1 << 40, 1 << 41),
    ],
)
async def test_any_range_of_it(store: AdoptedStore, root: Path, start: int, end: int) -> None:
    await refer(store, root)

    assert PAYLOAD[start:end] == await store.get_range(KEY, start, end)


async def test_little_is_stored_and_no_name(
    store: AdoptedStore, root: Path, behind: LocalObjectStore
) -> None:
    await refer(store, root)

    kept = await behind.get(KEY)
    assert len(kept) < 1000
    assert b"JANE" not in kept


@pytest.mark.parametrize("keep_time", [True, False])
async def test_a_changed_file_is_refused(store: AdoptedStore, root: Path, keep_time: bool) -> None:
    await refer(store, root)
    file = root / "DOE^JANE.dcm"
    status = file.stat()
    file.write_bytes(PAYLOAD[: CHUNK + 5] + b"!" + PAYLOAD[CHUNK + 6 :])
    os.utime(file, ns=(0, status.st_mtime_ns if keep_time else 1))

    with pytest.raises(IntegrityError):
        await store.get_range(KEY, CHUNK, CHUNK + 10)
    if keep_time:
        assert PAYLOAD[:CHUNK] == await store.get_range(KEY, 0, CHUNK)


async def test_a_file_that_is_gone_and_an_archive_that_is_gone(store: AdoptedStore, root: Path) -> None:
    await refer(store, root)
    (root / "DOE^JANE.dcm").rename(root / "elsewhere")
    with pytest.raises(NotFound):
        await store.get(KEY)
    root.rename(root.with_name("unmounted"))  # noqa: ASYNC240 - nobody else is on this loop
    with pytest.raises(StoreUnavailable):
        await store.get(KEY)


async def test_a_reference_put_elsewhere_does_not_open(
    store: AdoptedStore, root: Path, behind: LocalObjectStore
) -> None:
    await refer(store, root)
    info = await behind.head(KEY)
    await behind.put("instances/b/bcd", await behind.get(KEY), info.metadata)
    torn = bytearray(await behind.get(KEY))
    torn[20] ^= 1
    await behind.put("instances/c/cde", bytes(torn), info.metadata)

    for key in ("instances/b/bcd", "instances/c/cde"):
        with pytest.raises(IntegrityError):
            await store.get(key)


async def test_an_archive_that_is_not_listed_is_not_read(
    store: AdoptedStore, root: Path, behind: LocalObjectStore, tmp_path: Path
) -> None:
    await refer(store, root)
    (tmp_path / ARCHIVES_FILE).write_text("[]")

    with pytest.raises(StoreUnavailable):
        await AdoptedStore(behind, Archives(tmp_path), SiteKeys(bytes(32))).get(KEY)


async def test_a_file_that_grew_while_it_was_read_is_not_referred_to(store: AdoptedStore, root: Path) -> None:
    with pytest.raises(IntegrityError):
        await refer(store, root, payload=PAYLOAD + b"more")
    with pytest.raises(NotFound):
        await store.head(KEY)


async def test_what_is_stored_again_replaces_a_reference_only_where_asked(
    store: AdoptedStore, root: Path, behind: LocalObjectStore
) -> None:
    await refer(store, root)
    kept = await store.put(KEY, b"sealed")
    assert not kept.created
    assert len(PAYLOAD) == kept.info.size

    store.replacing = True
    async with store.stage() as staging:
        await staging.write(b"sealed")
        replaced = await staging.commit(KEY, {"received_at": "now", "sealing": "x"})

    assert replaced.created
    assert ("then", "x") == (replaced.info.metadata["received_at"], replaced.info.metadata["sealing"])
    assert b"sealed" == await store.get(KEY) == await behind.get(KEY)


async def test_other_objects_are_as_they_are(store: AdoptedStore) -> None:
    await store.put("instances/x/xyz", b"plain", {"a": "b"})

    assert b"lai" == await store.get_range("instances/x/xyz", 1, 4)
    assert b"plain" == b"".join([piece async for piece in store.stream("instances/x/xyz")])
    await store.delete("instances/x/xyz")
    with pytest.raises(NotFound):
        await store.get("instances/x/xyz")


async def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    (root / "z.dcm").symlink_to("/etc/hostname")
    os.mkfifo(root / "pipe")

    found = [each async for each in DirectoryArchive(root).files()]

    assert ["DOE^JANE.dcm"] == [each.path for each in found if isinstance(each, Found)]
    assert {"out", "pipe", "z.dcm"} == {each.path for each in found if isinstance(each, Passed)}


async def test_without_archives_there_is_nothing_in_between(tmp_path: Path, behind: LocalObjectStore) -> None:
    assert with_archives(behind, Archives(tmp_path), SiteKeys(bytes(32))) is behind


def test_a_list_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / ARCHIVES_FILE).write_text('[{"rot": 1}]')

    with pytest.raises(Misconfigured):
        Archives(tmp_path)
