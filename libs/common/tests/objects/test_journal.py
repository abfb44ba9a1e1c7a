"""What was acknowledged survives a loss of power at any moment; what was not leaves nothing half there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from isocenter.common.errors import NotFound, StoreUnavailable
from isocenter.common.objects import files, journal, shelf
from isocenter.common.objects.local import JOURNALED, PIECE, LocalObjectStore
from isocenter.common.objects.records import HEAD_BYTES, scan

SEGMENT = 64 << 10
LARGER = b"named" * (JOURNALED // 4)
EITHER = pytest.mark.parametrize("data", [b"one", LARGER], ids=["in the journal", "named by it"])
Bufs = Sequence[bytes | bytearray | memoryview]


class Disk:
    """A model of a disk under a directory: knows what syncs have made durable, and makes images of what a
    power loss would leave. What was not synced may be there, may be missing, may be half there.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}
        self.entries: dict[Path, dict[str, int]] = {}
        self.broken = False
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}
        self._placed: dict[int, Path] = {}
        write_at, write_durably = files.write_at, files.write_durably

        def durably(descriptor: int, buffers: Bufs, position: int) -> None:
            if self.broken:
                raise OSError(errno.EIO, "EIO")
            with self._lock:
                write_durably(descriptor, buffers, position)
                self._content(descriptor)

        def directory(path: Path) -> None:
            if self.broken:
                raise OSError(errno.EIO, "EIO")
            with self._lock:
                self._list(path)

        def whole(_: int) -> None:
            if self.broken:
                raise OSError(errno.EIO, "EIO")
            with self._lock:
                self.sync()

        def single(descriptor: int) -> None:
            if self.broken:
                raise OSError(errno.EIO, "EIO")
            with self._lock:
                self._content(descriptor)

        for module in (files, shelf, journal):
            for name, call in (
                ("sync_directory", directory),
                ("sync_file_system", whole),
                ("sync_file", single),
                ("write_durably", durably),
                ("write_at", write_at),
            ):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, call)
        for name in ("blanks", "workspace", "pending", "deletions", "replay"):
            monkeypatch.setattr(f"isocenter.common.objects.{name}.sync_directory", directory)

    def sync(self) -> None:
        for folder, _, names in os.walk(self.root):
            self._list(Path(folder))
            for name in names:
                with contextlib.suppress(FileNotFoundError), (Path(folder) / name).open("rb") as file:
                    self._content(file.fileno())

    def after_power_loss(self, target: Path, rng: random.Random) -> None:
        with self._lock:
            self._placed.clear()
            self._image(self.root, target, rng)

    def _list(self, path: Path) -> None:
        with os.scandir(path) as entries:
            self.entries[path] = {entry.name: entry.inode() for entry in entries}
        for name in self.entries[path]:
            with contextlib.suppress(FileNotFoundError):
                self._hold(os.open(path / name, os.O_RDONLY))

    def _hold(self, descriptor: int) -> None:
        """The number of an inode in the model must not be given to another file."""
        if os.fstat(descriptor).st_ino in self._held:
            os.close(descriptor)
        else:
            self._held[os.fstat(descriptor).st_ino] = descriptor

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def _content(self, descriptor: int) -> None:
        self._hold(os.dup(descriptor))
        status = os.fstat(descriptor)
        self.contents[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    def _image(self, source: Path, target: Path, rng: random.Random) -> None:
        target.mkdir(mode=0o700)
        durable = self.entries.get(source, {})
        now = {entry.name: entry.inode() for entry in os.scandir(source)} if source.is_dir() else {}
        for name in durable.keys() | now.keys():
            kept = name in durable
            if kept == (name in now) or rng.random() < 0.5:
                self._entry(source / name, target / name, durable.get(name, now.get(name, 0)), rng)

    def _entry(self, source: Path, target: Path, inode: int, rng: random.Random) -> None:
        if source.is_dir():
            self._image(source, target, rng)
            return
        if inode in self._placed:
            os.link(self._placed[inode], target)
            return
        self._placed[inode] = target
        durable = self.contents.get(inode, b"")
        now = source.read_bytes() if source.is_file() and source.stat().st_ino == inode else durable
        pages = []
        for start in range(0, max(len(durable), len(now)), 4096):
            old, new = durable[start : start + 4096], now[start : start + 4096]
            pages.append(new if rng.random() < 0.5 else old.ljust(len(new), b"\0"))
        size = rng.choice((len(durable), max(len(now), len(durable))))
        target.write_bytes(b"".join(pages)[:size])


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(tmp_path / "site", monkeypatch)
    yield made
    made.close()


@pytest.fixture
def number(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / f"after-{count}" for count in range(10_000))


async def commit(store: LocalObjectStore, key: str, data: bytes, *, pending: bool = True) -> None:
    async with store.stage() as staging:
        await staging.write(data)
        await staging.commit(key, {"of": key}, pending=pending)


def content(key: str, size: int) -> bytes:
    return random.Random(key).randbytes(size)


@pytest.mark.parametrize("seed", range(4))
async def test_power_is_lost_at_any_moment(
    disk: Disk, number: Iterator[Path], seed: int, tmp_path: Path
) -> None:
    """Puts, deletions, confirmations and segments that are used again; every few steps the power goes."""
    rng = random.Random(seed)
    store = LocalObjectStore(disk.root, segment_bytes=SEGMENT)
    disk.sync()
    held: dict[str, int] = {}
    owed: set[str] = set()
    gone: set[str] = set()

    async def step(count: int) -> None:
        what = rng.random()
        if what < 0.75 or not held:
            key = f"a/{rng.randrange(4)}/{count}"
            size = rng.choice((10, 5_000, 20_000, SEGMENT, PIECE + 10))
            await commit(store, key, content(key, size), pending=count % 2 == 0)
            held[key] = size
            owed.update({key} if count % 2 == 0 else ())
        elif what < 0.85:
            key = rng.choice(sorted(held))
            held.pop(key)  # before the deletion: no other lane chooses it too
            owed.discard(key)
            await store.delete(key)
            gone.add(key)
        else:
            keys = rng.sample(sorted(owed), len(owed) // 2)
            await store.confirm(keys)
            owed.difference_update(keys)

    for count in range(40):
        await asyncio.gather(*(step(3 * count + lane) for lane in range(1 if count % 2 else 3)))
        if count % 4 == 3:
            image = next(number)
            disk.after_power_loss(image, rng)
            await _inspect(image, held, owed, gone)
            shutil.rmtree(image)
    await store.close()
    await _inspect(disk.root, held, owed, gone, exactly=True)


async def _inspect(
    root: Path, held: dict[str, int], owed: set[str], gone: set[str], *, exactly: bool = False
) -> None:
    for _ in range(2):  # and once more: the replay itself left everything durable in the first place
        store = LocalObjectStore(root, segment_bytes=SEGMENT)
        for key, size in held.items():
            assert content(key, size) == await store.get(key)
        for key in gone:
            with pytest.raises(NotFound):
                await store.get(key)
        pending = {info.key async for info in store.pending()}
        assert owed <= pending
        assert not exactly or owed == pending
        assert set(held) == {info.key async for info in store.list()}
        await store.close()
    assert [] == [path for path in (root / "journal").iterdir() if path.suffix != ".lock"]


async def test_a_torn_record_was_never_acknowledged(disk: Disk, tmp_path: Path) -> None:
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", b"one" * 2000)
    await commit(store, "a/2", b"two" * 2000)
    copy = tmp_path / "copy"
    shutil.copytree(disk.root, copy)
    (segment,) = (copy / "journal").glob("*.journal")
    with segment.open("rb") as file:
        *_, last = scan(file.fileno())
    os.truncate(segment, last.position + 4096)
    shutil.rmtree(copy / "objects" / "a")

    later = LocalObjectStore(copy)
    assert ["a/1"] == [info.key async for info in later.list()]
    assert ["a/1"] == [info.key async for info in later.pending()]
    await later.close()
    await store.close()


async def test_a_damaged_file_is_written_anew_from_its_record(disk: Disk, tmp_path: Path) -> None:
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", b"one" * 2000)
    copy = tmp_path / "copy"
    shutil.copytree(disk.root, copy)
    (copy / "objects" / "a" / "1@1").write_bytes(b"")

    later = LocalObjectStore(copy)
    assert b"one" * 2000 == await later.get("a/1")
    assert not (copy / "damaged").exists()
    await later.close()
    await store.close()


@EITHER
async def test_a_journal_that_fails_is_done_without_and_used_again(disk: Disk, data: bytes) -> None:
    """EIO everywhere: nothing is acknowledged; then it goes on by itself."""
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", b"one")
    disk.broken = True
    with pytest.raises(StoreUnavailable):
        await commit(store, "a/2", data)
    disk.broken = False
    await commit(store, "a/2", data)
    await commit(store, "a/3", b"three")
    assert data == await store.get("a/2")
    await store.close()
    assert ["a/1", "a/2", "a/3"] == sorted(await _pending(disk.root))


async def test_an_error_nobody_thought_of_reaches_everyone_who_waits(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalObjectStore(disk.root)
    await commit(store, "a/0", b"zero")
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_durably", _no_memory)
        async with asyncio.timeout(10):
            told = await asyncio.gather(
                *(commit(store, f"a/{number}", b"x") for number in range(1, 9)), return_exceptions=True
            )
    assert {MemoryError} >= {type(each) for each in told if each is not None}
    assert any(told)
    async with asyncio.timeout(10):
        await commit(store, "a/9", b"nine")
    await store.close()


def _no_memory(*_: object) -> None:
    raise MemoryError


async def test_a_note_beside_a_batch_that_makes_the_file_longer(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch writes zeros ahead, which must not come over a record of others."""
    store = LocalObjectStore(disk.root)
    shelf_journal = store._shelf.journal
    await commit(store, "a/1", b"one")
    write, confirmed = files.write_durably, threading.Event()

    def confirm_first(descriptor: int, buffers: Bufs, position: int) -> None:
        if not confirmed.is_set():
            confirmed.set()
            shelf_journal.confirm(["a/1"])
        write(descriptor, buffers, position)

    monkeypatch.setattr(files, "write_durably", confirm_first)
    monkeypatch.setattr(journal, "_AHEAD_BYTES", 2 * 4096)
    (entry,) = shelf_journal._held.values()
    entry.segment.length = entry.segment.end
    await commit(store, "a/2", b"two")
    assert confirmed.is_set()
    with entry.segment.path.open("rb") as file:
        assert 2 == len(list(scan(file.fileno())))
        assert entry.segment.end == entry.position + 2 * 4096, "nothing is behind the records that are there"
    await store.close()


@EITHER
async def test_a_full_journal_lets_files_sync_themselves(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "ENOSPC")

    monkeypatch.setattr(files, "write_durably", full)
    store = LocalObjectStore(disk.root)
    disk.sync()
    await commit(store, "a/1", data)
    disk.after_power_loss(tmp_path / "after", random.Random(0))
    later = LocalObjectStore(tmp_path / "after")
    assert data == await later.get("a/1")
    assert ["a/1"] == [info.key async for info in later.pending()]
    await later.close()
    await store.close()


@EITHER
async def test_files_that_cannot_be_made_durable_keep_their_journal(
    disk: Disk, tmp_path: Path, data: bytes
) -> None:
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", data)
    disk.broken = True
    await store.close()
    disk.broken = False
    disk.after_power_loss(tmp_path / "after", random.Random(1))
    assert ["a/1"] == await _pending(tmp_path / "after")
    later = LocalObjectStore(tmp_path / "after")
    assert data == await later.get("a/1")
    await later.close()


async def test_the_first_name_of_a_larger_object_goes_when_the_second_is_durable(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SETTLE_SECONDS", 0.05)
    store = LocalObjectStore(disk.root)
    path = disk.root / "objects" / "a" / "1@1"
    await commit(store, "a/1", LARGER, pending=False)
    assert 2 == path.stat().st_nlink
    async with asyncio.timeout(10):
        while path.stat().st_nlink > 1:  # noqa: ASYNC110 - a thread of the store's changes it
            await asyncio.sleep(0.01)
    assert path.name in disk.entries[path.parent]
    await store.close()


@pytest.mark.parametrize("power", ["lost", "kept"])
async def test_a_larger_object_that_was_deleted_does_not_come_back(
    disk: Disk, tmp_path: Path, power: str
) -> None:
    """Its first name is still there, and the journal still names it."""
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", LARGER)
    await commit(store, "a/2", LARGER)
    await store.delete("a/1")
    if power == "lost":
        disk.after_power_loss(tmp_path / "after", random.Random(2))
    else:
        shutil.copytree(disk.root, tmp_path / "after")
    assert ["a/2"] == await _pending(tmp_path / "after")
    await store.close()


async def test_a_damaged_object_gets_the_sound_file_that_the_journal_names(
    disk: Disk, tmp_path: Path
) -> None:
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", LARGER)
    copy = tmp_path / "copy"
    shutil.copytree(disk.root, copy)  # two files now
    (copy / "objects" / "a" / "1@1").write_bytes(b"")
    later = LocalObjectStore(copy)
    assert LARGER == await later.get("a/1")
    await later.close()
    await store.close()


async def test_a_torn_page_names_nothing(disk: Disk, tmp_path: Path) -> None:
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", LARGER)
    copy = tmp_path / "copy"
    shutil.copytree(disk.root, copy)
    (segment,) = (copy / "journal").glob("*.journal")
    with segment.open("rb") as file:
        (record,) = scan(file.fileno())
    with segment.open("r+b") as file:
        file.seek(record.position + HEAD_BYTES)
        file.write(b"a/2")
    shutil.rmtree(copy / "objects" / "a")
    later = LocalObjectStore(copy)
    assert [] == [info.key async for info in later.list()]
    await later.close()
    await store.close()


async def test_a_living_process_keeps_its_journal(disk: Disk) -> None:
    store = LocalObjectStore(disk.root)
    await commit(store, "a/1", b"one")
    other = LocalObjectStore(disk.root)
    assert b"one" == await other.get("a/1")
    assert 1 == len(list((disk.root / "journal").glob("*.journal")))
    await other.close()
    await store.close()


async def _pending(root: Path) -> list[str]:
    store = LocalObjectStore(root)
    keys = [info.key async for info in store.pending()]
    await store.close()
    return keys


@pytest.mark.parametrize("seed", range(3))
async def test_pieces_of_any_size_become_one_object(tmp_path: Path, seed: int) -> None:
    """Below and above what goes through the journal; gathered, absorbed or written through."""
    rng = random.Random(seed)
    store = LocalObjectStore(tmp_path)
    sent: dict[str, bytes] = {}
    for number in range(20):
        key, data = f"a/{number}", b""
        async with store.stage() as staging:
            for _ in range(rng.randrange(1, 6)):
                piece = rng.randbytes(rng.choice((1, 1000, 130 << 10, 600 << 10, PIECE, PIECE + 70)))
                await staging.write(piece)
                data += piece
            await staging.commit(key, {}, pending=True)
        sent[key] = data
    await store.close()

    later = LocalObjectStore(tmp_path)
    assert set(sent) == {info.key async for info in later.pending()}
    for key, data in sent.items():
        assert data == await later.get(key)
    await later.close()
    assert [] == [path for path in (tmp_path / "staging").rglob("*") if path.is_file()]
