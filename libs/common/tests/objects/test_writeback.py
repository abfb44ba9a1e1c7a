"""A disk that loses what it was given later to write, and says so once: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.objects import files, journal
from isocenter.common.objects.journal import Entry, Journal
from isocenter.common.objects.local import LocalObjectStore

NAMES = [f"d/{number}" for number in range(8)]


@dataclass(slots=True)
class Errors:
    """The kernel's `errseq`: each open file that was there at an error is told of it once. One that is opened
    later is told only if nobody was before.
    """

    count: int = 0
    seen: bool = True

    def add(self) -> None:
        self.count += 1
        self.seen = False

    def sample(self) -> int:
        return self.count if self.seen else 0

    def told(self, since: int) -> bool:
        self.seen |= self.count != since
        return self.count != since


class Kernel:
    """A model of writeback under a directory. While the disk is `bad`, a file whose turn it is loses what it
    had: its pages are clean and read well, and nobody writes them again. What is synced as it is written, the
    journal's segments, is well, and so are names.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.bad = False
        self.failures_left: int | None = None
        self.syncs = 0
        self._lock = threading.RLock()
        self._all = Errors()
        self._each: dict[int, Errors] = {}
        self._told: dict[int, tuple[int, int]] = {}
        self._durable: dict[int, bytes] = {}
        self._written: dict[int, bytes] = {}
        self._held: dict[int, int] = {}
        self._open, self._close = os.open, os.close
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(files, "_LIBC", self)

    def open(self, path: Any, *arguments: Any, **more: Any) -> int:
        descriptor = self._open(path, *arguments, **more)
        with self._lock:
            each = self._errors(os.fstat(descriptor).st_ino)
            self._told[descriptor] = self._all.sample(), each.sample()
        return descriptor

    def fsync(self, descriptor: int) -> None:
        with self._lock:
            inode = os.fstat(descriptor).st_ino
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_file():
                self._write_back(path)
            whole, since = self._told[descriptor]
            self._told[descriptor] = whole, self._errors(inode).count
            if self._errors(inode).told(since):
                raise OSError(errno.EIO, "EIO")

    def syncfs(self, descriptor: int) -> int:
        if not Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(self.root):
            return 0  # what is left after a power loss lies on a disk that is well
        with self._lock:
            self.syncs += 1
            self.write_back()
            since, each = self._told[descriptor]
            self._told[descriptor] = self._all.count, each
            if not self._all.told(since):
                return 0
        ctypes.set_errno(errno.EIO)
        return -1

    def write_back(self) -> None:
        with self._lock:
            for path in sorted(self.root.rglob("*")):
                if path.is_file():
                    self._write_back(path)

    def somebody_syncs(self) -> None:
        """Another process, which is told what then is known."""
        descriptor = self.open(self.root, os.O_RDONLY)
        self.syncfs(descriptor)
        self._close(descriptor)

    def after_power_loss(self, target: Path) -> Path:
        """With what the disk has of each file, in another place."""
        placed: dict[int, Path] = {}
        for path in sorted(self.root.rglob("*")):
            image = target / path.relative_to(self.root)
            inode = path.stat().st_ino
            if path.is_dir():
                image.mkdir(parents=True)
            elif inode in placed:
                os.link(placed[inode], image)
            else:
                placed[inode] = image
                data = path.read_bytes()
                kept = data if path.suffix == journal.SUFFIX else self._durable.get(inode, b"")
                image.write_bytes(kept.ljust(len(data), b"\0"))
        return target

    def end(self) -> None:
        with self._lock:  # a store that a failed test left open goes on
            for descriptor in self._held.values():
                self._close(descriptor)
            self._held.clear()

    def _errors(self, inode: int) -> Errors:
        return self._each.setdefault(inode, Errors())

    def _write_back(self, path: Path) -> None:
        try:
            data, inode = path.read_bytes(), path.stat().st_ino
            if inode not in self._held:  # its number must not be another's
                self._held[inode] = self._open(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        if path.suffix == journal.SUFFIX or not data or self._written.get(inode) == data:
            return
        self._written[inode] = data
        if not self.bad:
            self._durable[inode] = data
            return
        self._errors(inode).add()
        self._all.add()
        if self.failures_left is not None:
            self.failures_left -= 1
            self.bad = self.failures_left > 0


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setattr(journal, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(journal, "_RETRY_SECONDS", 0.05)
    made = Kernel(tmp_path / "site", monkeypatch)
    yield made
    made.bad = False
    made.end()


def content(key: str) -> bytes:
    return key.encode() * 500


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a thread of the store's changes it
            await asyncio.sleep(0.01)


async def put_all(store: LocalObjectStore) -> None:
    for key in NAMES:
        async with store.stage() as staging:
            await staging.write(content(key))
            await staging.commit(key, {}, pending=True)


async def settled(store: LocalObjectStore) -> None:
    await until(lambda: not any(map(store._shelf.journal.holds, NAMES)))


async def assert_kept(root: Path) -> None:
    store = LocalObjectStore(root)
    try:
        assert NAMES == [info.key async for info in store.list()]
        for key in NAMES:
            assert content(key) == await store.get(key)
        assert set(NAMES) == {info.key async for info in store.pending()}
    finally:
        await store.close()


async def test_a_disk_that_stays_bad_is_not_believed_when_it_is_silent(
    kernel: Kernel, tmp_path: Path
) -> None:
    store = LocalObjectStore(kernel.root)
    kernel.bad = True
    await put_all(store)
    await until(lambda: store._shelf.journal.fault is not None)
    await asyncio.sleep(1)  # twenty tries
    assert all(map(store._shelf.journal.holds, NAMES))
    await assert_kept(kernel.after_power_loss(tmp_path / "during"))
    kernel.bad = False
    await settled(store)
    await assert_kept(kernel.after_power_loss(tmp_path / "after"))
    await store.close()


@pytest.mark.parametrize("failures", [1, 2, 8, 9, 10])
async def test_a_short_outage(kernel: Kernel, tmp_path: Path, failures: int) -> None:
    store = LocalObjectStore(kernel.root)
    kernel.bad, kernel.failures_left = True, failures
    await put_all(store)
    await settled(store)
    await assert_kept(kernel.after_power_loss(tmp_path / "after"))
    await store.close()


async def test_an_error_that_one_segment_is_told_of_is_the_next_ones_as_well(
    kernel: Kernel, tmp_path: Path
) -> None:
    store = LocalObjectStore(kernel.root, segment_bytes=5 * 8192 + 4096)
    kernel.bad, kernel.failures_left = True, len(NAMES)
    await put_all(store)
    await settled(store)
    await assert_kept(kernel.after_power_loss(tmp_path / "after"))
    await store.close()


async def test_an_error_that_another_process_was_told_of(kernel: Kernel, tmp_path: Path) -> None:
    store = LocalObjectStore(kernel.root)
    kernel.bad, kernel.failures_left = True, len(NAMES)
    await put_all(store)
    kernel.somebody_syncs()
    await settled(store)
    await assert_kept(kernel.after_power_loss(tmp_path / "after"))
    await store.close()


@pytest.mark.parametrize("openers", [1, 2])
async def test_a_replay_does_not_believe_what_it_reads(kernel: Kernel, tmp_path: Path, openers: int) -> None:
    """The files read well, and are not on the disk; who was told of it is gone."""
    store = LocalObjectStore(kernel.root)
    kernel.bad = True
    await put_all(store)
    await store.close()  # in vain, so that the journal stays
    kernel.bad = False
    kernel.somebody_syncs()
    for _ in range(openers):
        later = LocalObjectStore(kernel.root)
        await later.close()
    await assert_kept(kernel.after_power_loss(tmp_path / "after"))


async def test_a_file_that_was_written_before_the_error_and_recorded_after_it(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalObjectStore(kernel.root)
    append = Journal.append

    def late(self: Journal, key: str, *arguments: Any, **more: Any) -> Entry:
        if key == NAMES[-1]:
            kernel.bad = True
            kernel.write_back()
            kernel.bad = False
            while self.doubts == 0 or any(map(self.holds, NAMES)):
                time.sleep(0.01)  # the error is told when the others are settled
        return append(self, key, *arguments, **more)

    monkeypatch.setattr(Journal, "append", late)
    await put_all(store)
    await settled(store)
    await assert_kept(kernel.after_power_loss(tmp_path / "after"))
    await store.close()


@pytest.mark.parametrize("times", [1, 2])
async def test_deleted_bytes_do_not_come_back_over_a_later_object(
    kernel: Kernel, tmp_path: Path, times: int
) -> None:
    """Records of both are in the journal when all is written anew from it."""
    store = LocalObjectStore(kernel.root)
    kernel.bad, kernel.failures_left = True, times
    await store.put("d/k", b"deleted")
    await store.put("d/gone", b"deleted")
    await store.delete("d/k")
    await store.delete("d/gone")
    await store.put("d/k", b"acknowledged")
    await until(lambda: kernel.syncs > 0 and not store._shelf.journal.holds("d/k"))
    assert b"acknowledged" == await store.get("d/k")
    await store.close()
    later = LocalObjectStore(kernel.after_power_loss(tmp_path / "after"))
    assert b"acknowledged" == await later.get("d/k")
    assert ["d/k"] == [info.key async for info in later.list()]
    await later.close()
