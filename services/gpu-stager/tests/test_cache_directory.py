"""Entries on a disk: whole or not there, whatever a start finds and whenever the process dies."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isocenter.common.errors import IntegrityError, StoreFull, StoreUnavailable
from isocenter.gpu_stager.cache import directory as module
from isocenter.gpu_stager.cache.directory import HEAD, CacheBroken, Directory, Head
from isocenter.gpu_stager.manifest import MANIFEST, Entry

DATA = bytes(range(256)) * 40


def name_of(number: int) -> str:
    return f"{chr(97 + number) * 26}-{number:016x}"


def entry_of(number: int, study: str = "study") -> Entry:
    return Entry(name_of(number), study, f"series-{number}", "c", "CT", (), (), size_bytes=len(DATA))


def write(part: Path, data: bytes = DATA) -> None:
    (part / "0" / "c").mkdir(parents=True)
    (part / "0" / "c" / "0").write_bytes(data)
    (part / "zarr.json").write_bytes(b"{}")


def add(directory: Directory, number: int, study: str = "study") -> Path:
    part = directory.begin()
    write(part)
    return directory.commit(part, entry_of(number, study))


def whole(path: Path, number: int) -> bool:
    found = Entry.from_json((path / MANIFEST).read_bytes())
    return found == entry_of(number) and (path / "0" / "c" / "0").read_bytes() == DATA


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    directory = Directory(tmp_path / "disk")
    assert directory.open() == []
    return directory


def names(directory: Directory, what: str) -> list[str]:
    return sorted(path.name for path in (directory.root / what).iterdir())


def test_it_is_for_this_user_alone(directory: Directory) -> None:
    add(directory, 0)
    folders = [directory.root, *(path for path in directory.root.iterdir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    directory.root.chmod(0o755)
    Directory(directory.root).open()
    assert directory.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc/passwd", name_of(0) + "/..", name_of(0).upper(), name_of(0) + "\n"]
)
def test_no_name_leads_out_of_it(directory: Directory, name: str) -> None:
    for use in (directory.path, directory.evict, directory.quarantine, directory.manifest):
        with pytest.raises(IntegrityError):
            use(name)
    assert names(directory, "trash") == []


def test_a_start_finds_entries_and_clears_up_the_rest(directory: Directory) -> None:
    for number in range(6):
        add(directory, number)
    for number, what in ((1, MANIFEST), (2, MANIFEST)):
        path = directory.path(name_of(number)) / what
        path.unlink() if number == 1 else path.write_bytes(b"")
    (directory.path(name_of(3)) / HEAD).write_bytes(b"{")
    shutil.rmtree(directory.path(name_of(4)) / "0")
    directory.path(name_of(5)).rename(directory.path(name_of(9)))
    write(directory.begin())
    (directory.root / "trash" / "left").mkdir()
    (directory.root / "entries" / "stranger").mkdir()
    (directory.root / "entries" / "file").write_bytes(b"")
    heads = {head.name: head for head in Directory(directory.root).open()}
    assert set(heads) == {name_of(0), name_of(3), name_of(4)} == set(names(directory, "entries"))
    assert heads[name_of(0)] == Head(name_of(0), "study", "series-0", "CT", len(DATA))
    assert heads[name_of(3)] == Head(name_of(3), "study", "series-3", "CT", len(DATA))
    assert (names(directory, "parts"), names(directory, "trash")) == ([], [])


@pytest.mark.parametrize("change", [{"size_bytes": "9"}, {"size_bytes": -1}, {"study_key": 7}, {"more": 1}])
def test_an_odd_head_does_not_count(directory: Directory, change: dict[str, object]) -> None:
    head = add(directory, 0) / HEAD
    head.write_text(json.dumps({**json.loads(head.read_text()), **change}))
    assert directory.open() == [Head(name_of(0), "study", "series-0", "CT", len(DATA))]


def test_entries_of_another_release_go(directory: Directory) -> None:
    head = add(directory, 0) / HEAD
    head.write_text(json.dumps({**json.loads(head.read_text()), "version": 999}))
    manifest = add(directory, 1) / MANIFEST
    (manifest.parent / HEAD).unlink()
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 999}))
    assert directory.open() == []
    assert names(directory, "entries") == []


def test_the_first_one_stays(directory: Directory) -> None:
    path = add(directory, 0)
    inode = path.stat().st_ino
    part = directory.begin()
    write(part, b"other")
    assert directory.commit(part, entry_of(0)) == path
    assert path.stat().st_ino == inode
    assert whole(path, 0)
    assert names(directory, "parts") == []


def test_open_files_outlive_their_entry(directory: Directory) -> None:
    path = add(directory, 0)
    with (path / "0" / "c" / "0").open("rb") as file:
        directory.evict(name_of(0))
        assert not path.exists()
        directory.empty_trash()
        assert names(directory, "trash") == []
        assert file.read() == DATA
    directory.evict(name_of(0))  # what is gone is gone


def test_quarantine_keeps_the_last_few_and_nothing_of_a_study_that_must_go(directory: Directory) -> None:
    for number in range(6):
        os.utime(add(directory, number, "even" if number % 2 == 0 else "odd"), (number, number))
        directory.quarantine(name_of(number))
    assert names(directory, "quarantine") == [name_of(number) for number in range(2, 6)]
    directory.forget_damaged(study_key="even", series_key="series-4")
    assert names(directory, "quarantine") == [name_of(number) for number in (2, 3, 5)]
    directory.forget_damaged(study_key="even")
    (directory.root / "quarantine" / name_of(3) / MANIFEST).unlink()
    directory.forget_damaged(study_key="another")
    assert names(directory, "quarantine") == [name_of(5)]
    assert names(directory, "trash") == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EIO, CacheBroken),
        (errno.EROFS, CacheBroken),
        (errno.EACCES, StoreUnavailable),
    ],
)
def test_what_a_disk_says(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreUnavailable]
) -> None:
    part = directory.begin()
    write(part)

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    for use in (lambda: directory.commit(part, entry_of(0)), directory.check):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert type(caught.value) is kind
    assert (names(directory, "entries"), names(directory, "parts")) == ([], [part.name])


def test_what_could_not_be_made_durable_is_not_left_where_nobody_counts_it(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, real = directory.begin(), module._sync
    write(part)

    def sync(path: Path) -> None:
        if path.name == "entries":
            raise OSError(errno.EIO, "")
        real(path)

    monkeypatch.setattr(module, "_sync", sync)
    with pytest.raises(CacheBroken):
        directory.commit(part, entry_of(0))
    assert names(directory, "entries") == []


def test_everything_is_on_the_disk_before_the_entry_is_seen(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves: nothing is renamed into place whose bytes or names are not synced."""
    part = directory.begin()
    write(part)
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        steps.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def renamed(source: str, target: str) -> None:
        steps.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    path = directory.commit(part, entry_of(0))
    seen = steps.index(("rename", str(path)))
    everything = {str(part), *(str(part / each.relative_to(path)) for each in path.rglob("*"))}
    assert len(everything) == 7
    assert {target for kind, target in steps[:seen] if kind == "sync"} == everything
    assert steps[seen - 1] == ("sync", str(part))
    manifest = steps.index(("rename", str(part / MANIFEST)))
    assert manifest < steps.index(("sync", str(part / MANIFEST))) < steps.index(("sync", str(part)))
    assert steps[seen + 1 :] == [("sync", str(path.parent))]
    steps.clear()
    directory.evict(name_of(0))
    assert steps[-1] == ("sync", str(path.parent))


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from isocenter.gpu_stager.cache.directory import Directory
from isocenter.gpu_stager.cache.ledger import Limits
from isocenter.gpu_stager.cache.staging import Cache, Wanted
from isocenter.gpu_stager.manifest import Entry

base, what = Path(sys.argv[1]), sys.argv[2]
DATA = bytes(range(256)) * 40
now, left = [0.0], [10**9]

def step():
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def dying(real):
    def call(*arguments, **named):
        step()
        return real(*arguments, **named)
    return call

def wanted(number):
    return Wanted(chr(97 + number) * 26 + f"-{number:016x}", "study", f"series-{number}", "CT", len(DATA))

def builder(one):
    async def build(part, making):
        step(); making.fetching(); step()
        (part / "0" / "c").mkdir(parents=True)
        making.decoding(); step()
        descriptor = os.open(part / "0" / "c" / "0", os.O_WRONLY | os.O_CREAT)
        for start in range(0, len(DATA), 4096):
            step()
            os.write(descriptor, DATA[start:start + 4096])
        os.close(descriptor)
        making.writing(); step()
        (part / "zarr.json").write_bytes(b"{}")
        return Entry(one.name, one.study_key, one.series_key, "c", "CT", (), (), size_bytes=len(DATA))
    return build

async def go(root, steps):
    limits = Limits(quota_bytes=2 * len(DATA), largest=1.0, high=1.0, low=1.0, min_free=0.0)
    cache = Cache([Directory(root)], limits, monotonic=lambda: now[0])
    await cache.start()
    for number in (0, 1):
        await cache.stage(wanted(number), builder(wanted(number)))
        now[0] += 100
    for name in ("mkdir", "rename", "fsync", "unlink", "rmdir", "open", "scandir"):
        setattr(os, name, dying(getattr(os, name)))
    left[0] = steps
    if what == "stage":
        await cache.stage(wanted(2), builder(wanted(2)))
    elif what == "evict":
        await cache.evict(wanted(0).name)
    elif what == "damaged":
        await cache.damaged(wanted(0).name)
    elif what == "drop":
        await cache.drop(series_key="series-0")

for steps in range(500):
    child = os.fork()
    if not child:
        asyncio.run(go(base / str(steps), steps))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.mark.parametrize(("what", "points"), [("stage", 40), ("evict", 8), ("damaged", 5), ("drop", 8)])
def test_kill_9_at_every_step_leaves_nothing_half(tmp_path: Path, what: str, points: int) -> None:
    """`stage` evicts the first entry for its own."""
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), what], check=True, timeout=120)
    roots = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert points < len(roots) < 500
    outcomes = []
    for root in roots:
        directory = Directory(root)
        for name in names(directory, "entries"):  # as a reader sees it before any start clears up
            assert whole(root / "entries" / name, ord(name[0]) - 97)
        heads = sorted(head.name for head in directory.open())
        assert heads == names(directory, "entries")
        for name in heads:
            assert whole(directory.path(name), ord(name[0]) - 97)
        assert (names(directory, "parts"), names(directory, "trash")) == ([], [])
        assert name_of(1) in heads
        outcomes.append(tuple(name[0] for name in heads))
    assert outcomes[0] == ("a", "b")
    assert outcomes[-1] == {"stage": ("b", "c")}.get(what, ("b",))
    assert outcomes == sorted(outcomes, key=[("a", "b"), ("b",), ("b", "c")].index)


def test_ten_thousand_entries_are_found_quickly(directory: Directory) -> None:
    head = {"version": 1, "study_key": "s", "series_key": "t", "modality": "CT", "size_bytes": 1}
    for number in range(10_000):
        name = f"{'a' * 26}-{number:016x}"
        path = directory.root / "entries" / name
        path.mkdir()
        (path / HEAD).write_text(json.dumps({**head, "name": name}))
        (path / MANIFEST).write_bytes(b"{")  # is not read
    started = time.perf_counter()
    assert len(directory.open()) == 10_000
    assert time.perf_counter() - started < 5
