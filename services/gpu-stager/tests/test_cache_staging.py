"""Made once, however many ask; given up when nobody asks any more; on the next disk where one fails."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.errors import IntegrityError, Overloaded, StoreUnavailable
from isocenter.gpu_stager.cache import staging
from isocenter.gpu_stager.cache.directory import CacheBroken, Directory
from isocenter.gpu_stager.cache.ledger import CacheFull, Limits, Pin, Priority, TooLarge
from isocenter.gpu_stager.cache.staging import Cache, Failed, Making, Wanted, Withdrawn
from isocenter.gpu_stager.cache.states import State
from isocenter.gpu_stager.manifest import Entry

SIZE = 1000


def name_of(number: int, content: int = 0) -> str:
    return f"{chr(97 + number) * 26}-{content:016x}"


def wanted(number: int = 0, content: int = 0, size: int = SIZE, study: str = "study") -> Wanted:
    return Wanted(name_of(number, content), study, f"series-{number}", "CT", size)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Disk(Directory):
    """A disk with as much space as a test says."""

    free, total = 10**9, 10**9

    def space(self) -> tuple[int, int]:
        super().space()
        return self.free, self.total


class Builds:
    """Builds entries of one file, as slowly as a test says."""

    def __init__(self) -> None:
        self.count = 0
        self.parts: list[Path] = []
        self.go = asyncio.Event()
        self.go.set()
        self.begun = asyncio.Event()
        self.error: Exception | None = None

    def of(
        self, one: Wanted, before: Callable[[Path, Making], Awaitable[None]] | None = None, **changes: Any
    ) -> Callable[[Path, Making], Awaitable[Entry]]:
        async def build(part: Path, making: Making) -> Entry:
            self.count += 1
            self.parts.append(part)
            making.fetching()
            self.begun.set()
            if before is not None:
                await before(part, making)
            await self.go.wait()
            making.decoding()
            (part / "0").mkdir()
            await asyncio.to_thread((part / "0" / "data").write_bytes, bytes(one.size_bytes))
            if self.error is not None:
                raise self.error
            making.writing()
            values: dict[str, Any] = {
                "name": one.name,
                "study_key": one.study_key,
                "series_key": one.series_key,
                "content": "c",
                "modality": one.modality,
                "stacks": (),
                "sources": (),
                "size_bytes": one.size_bytes,
            }
            return Entry(**{**values, **changes})

        return build


@pytest.fixture
async def builds() -> Builds:
    return Builds()


class Site:
    """A cache, its disks, its time, and what it told."""

    def __init__(self, folder: Path, *, disks: int = 1, **limits: Any) -> None:
        self.disks = [Disk(folder / f"disk{number}") for number in range(disks)]
        self.time = Time()
        self.told: list[tuple[str, str, str]] = []
        self.limits = Limits(**{"quota_bytes": 10 * SIZE, "largest": 0.5, **limits})
        self.cache = self.again()

    def again(self) -> Cache:
        def told(kind: str, row: Any, reason: str) -> None:
            self.told.append((kind, row.name, reason))

        return Cache(self.disks, self.limits, told=told, monotonic=self.time)

    def state(self, name: str) -> State:
        row = self.cache.ledger.rows.get(name)
        return State.ABSENT if row is None else row.state

    def on_disk(self, what: str = "entries", disk: int = 0) -> list[str]:
        return sorted(path.name for path in (self.disks[disk].root / what).iterdir())


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    await site.cache.start()
    return site


async def test_a_hundred_callers_one_build(site: Site, builds: Builds) -> None:
    one = wanted()
    found = await asyncio.gather(*(site.cache.stage(one, builds.of(one)) for _ in range(100)))
    assert builds.count == 1
    assert {each.path for each in found} == {site.disks[0].path(one.name)}
    assert not any(each.hit for each in found)
    again = await site.cache.stage(one, builds.of(one))
    assert again.hit
    assert builds.count == 1
    assert (site.cache.ledger.hits, site.cache.ledger.misses) == (1, 1)
    assert site.told == [("ready", one.name, "")]
    assert (await site.cache.entry(one.name)).size_bytes == SIZE


async def test_who_leaves_does_not_end_it_for_the_others_but_the_last_one_does(
    site: Site, builds: Builds
) -> None:
    one = wanted()
    builds.go.clear()
    callers = [asyncio.create_task(site.cache.stage(one, builds.of(one))) for _ in range(5)]
    await builds.begun.wait()
    for caller in callers[:4]:
        caller.cancel()
    await asyncio.wait(callers[:4])
    assert all(caller.cancelled() for caller in callers[:4])
    assert site.state(one.name) is State.FETCHING
    callers[4].cancel()
    await asyncio.wait(callers)
    assert callers[4].cancelled()
    assert site.state(one.name) is State.ABSENT
    assert site.cache.ledger.charged == 0
    assert site.on_disk("parts") == []
    builds.go.set()
    assert not (await site.cache.stage(one, builds.of(one))).hit
    assert builds.count == 2


async def test_all_leave_in_the_same_moment(site: Site, builds: Builds) -> None:
    one = wanted()
    builds.go.clear()
    callers = [asyncio.create_task(site.cache.stage(one, builds.of(one))) for _ in range(20)]
    await builds.begun.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert all(caller.cancelled() for caller in callers)
    assert (site.cache.ledger.charged, site.on_disk("parts")) == (0, [])


async def test_who_comes_while_a_build_is_given_up_gets_one_of_his_own(site: Site, builds: Builds) -> None:
    one, leaving = wanted(), asyncio.Event()

    async def slow_to_leave(part: Path, making: Making) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await leaving.wait()

    first = asyncio.create_task(site.cache.stage(one, builds.of(one, slow_to_leave)))
    await builds.begun.wait()
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.create_task(site.cache.stage(one, builds.of(one)))
    await asyncio.sleep(0.01)
    leaving.set()
    assert not (await second).hit
    assert builds.count == 2


async def test_who_leaves_during_the_commit_leaves_a_whole_entry(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting the folder while a thread renames it would publish half of it."""
    one, loop = wanted(), asyncio.get_running_loop()
    committing, go, real = asyncio.Event(), threading.Event(), Directory.commit

    def commit(self: Directory, part: Path, entry: Entry) -> Path:
        loop.call_soon_threadsafe(committing.set)
        go.wait(10)
        return real(self, part, entry)

    monkeypatch.setattr(Directory, "commit", commit)
    caller = asyncio.create_task(site.cache.stage(one, builds.of(one)))
    await committing.wait()
    caller.cancel()
    await asyncio.sleep(0.02)
    loop.call_later(0.02, go.set)
    await asyncio.wait({caller})
    assert caller.cancelled()
    assert site.state(one.name) is State.READY
    assert (site.disks[0].path(one.name) / "0" / "data").stat().st_size == SIZE


@pytest.mark.parametrize("moment", ["discard", "begin"])
async def test_nothing_stays_charged_for_who_left_early(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    await fill(site, builds, 10)
    site.time.now += 100
    slow, loop = asyncio.Event(), asyncio.get_running_loop()
    method = {"discard": "evict", "begin": "begin"}[moment]
    real = getattr(Directory, method)

    def slowly(self: Directory, *arguments: Any) -> Any:
        loop.call_soon_threadsafe(slow.set)
        time.sleep(0.05)
        return real(self, *arguments)

    monkeypatch.setattr(Directory, method, slowly)
    one = wanted(20)
    caller = asyncio.create_task(site.cache.stage(one, builds.of(one)))
    await slow.wait()
    caller.cancel()
    await asyncio.wait({caller})
    await site.cache.stop()
    await asyncio.sleep(0.1)  # a thread that nobody waited for would be done by now
    assert caller.cancelled()
    assert {row.state for row in site.cache.ledger.rows.values()} == {State.READY}
    assert len(site.on_disk()) == len(site.cache.ledger.rows) == 9
    assert site.on_disk("parts") == []
    monkeypatch.undo()
    assert not (await site.cache.stage(one, builds.of(one))).hit


async def fill(site: Site, builds: Builds, count: int) -> None:
    for number in range(count):
        await site.cache.stage(wanted(number), builds.of(wanted(number)))
        site.time.now += 1


async def test_each_who_waits_hears_the_error_and_it_is_tried_again_later_and_later(
    site: Site, builds: Builds
) -> None:
    one = wanted()
    builds.error = StoreUnavailable("the object store is down")
    errors = await asyncio.gather(
        *(site.cache.stage(one, builds.of(one)) for _ in range(10)), return_exceptions=True
    )
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert (builds.count, site.cache.ledger.charged, site.on_disk("parts")) == (1, 0, [])
    assert site.told == [("failed", one.name, "store-unavailable")]
    assert not site.cache.broken
    for wait in (1, 2, 4, 8, 16, 32, 60, 60):
        site.time.now += wait - 0.1
        with pytest.raises(Failed):
            await site.cache.stage(one, builds.of(one))
        site.time.now += 0.1
        with pytest.raises(StoreUnavailable):
            await site.cache.stage(one, builds.of(one))
    builds.error = None
    site.time.now += 60
    assert not (await site.cache.stage(one, builds.of(one))).hit


async def test_what_never_can_be_staged_is_tried_with_other_content_or_after_ten_minutes(
    site: Site, builds: Builds
) -> None:
    one = wanted()
    builds.error = IntegrityError("not what the index says")
    with pytest.raises(IntegrityError):
        await site.cache.stage(one, builds.of(one))
    site.time.now += 599
    with pytest.raises(Failed):
        await site.cache.stage(one, builds.of(one))
    builds.error = None
    other = wanted(content=1)
    await site.cache.stage(other, builds.of(other))
    site.time.now += 2
    await site.cache.stage(one, builds.of(one))
    builds.error = IntegrityError("again")
    with pytest.raises(IntegrityError):
        await site.cache.stage(wanted(5), builds.of(wanted(5)))
    site.time.now += 1201
    await site.cache.reap()
    assert site.state(name_of(5)) is State.ABSENT


@pytest.mark.parametrize("wrong", [{"name": name_of(9)}, {"study_key": "other"}, {"series_key": "other"}])
async def test_an_entry_that_nobody_asked_for_is_not_published(
    site: Site, builds: Builds, wrong: dict[str, Any]
) -> None:
    one = wanted()
    with pytest.raises(IntegrityError):
        await site.cache.stage(one, builds.of(one, **wrong))
    assert (site.on_disk(), site.on_disk("parts"), site.cache.ledger.charged) == ([], [], 0)


async def test_a_build_that_skips_a_step_is_not_published(site: Site) -> None:
    one = wanted()

    async def build(part: Path, making: Making) -> Entry:
        return Entry(one.name, one.study_key, one.series_key, "c", "CT", (), (), size_bytes=SIZE)

    with pytest.raises(Exception, match="verify while reserved"):
        await site.cache.stage(one, build)
    assert (site.on_disk(), site.cache.ledger.charged) == ([], 0)


async def test_the_real_size_is_what_is_charged(site: Site, builds: Builds) -> None:
    one = wanted(size=300)
    await site.cache.stage(one, builds.of(one, size_bytes=350))
    assert site.cache.ledger.charged == 350

    async def larger(part: Path, making: Making) -> None:
        making.size(5 * SIZE + 1)

    with pytest.raises(TooLarge):
        await site.cache.stage(wanted(1), builds.of(wanted(1), larger))
    assert site.cache.ledger.charged == 350


async def test_what_was_used_last_stays(site: Site, builds: Builds) -> None:
    await fill(site, builds, 10)
    lease = site.cache.lease(name_of(0))
    site.cache.pin(name_of(1), Pin.HARD)
    site.cache.pin(name_of(2), Pin.SOFT)
    assert lease is not None
    for _ in range(5):
        site.time.now += 30
        assert site.cache.renew(lease)
    descriptor = os.open(lease.path / "0" / "data", os.O_RDONLY)
    for number in (10, 11):
        await site.cache.stage(wanted(number), builds.of(wanted(number)))
    assert [told[1:] for told in site.told if told[0] == "evicted"] == [
        (name_of(3), "space"),
        (name_of(4), "space"),
    ]
    assert site.on_disk() == sorted(site.cache.ledger.rows)
    assert site.on_disk("trash") == []
    site.cache.release(lease)
    assert await site.cache.evict(name_of(0))
    assert os.pread(descriptor, 2 * SIZE, 0) == bytes(SIZE)
    os.close(descriptor)


async def test_a_request_waits_for_room_and_the_more_urgent_one_goes_first(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "ROOM_SECONDS", 0.005)
    await fill(site, builds, 10)  # all in grace
    with pytest.raises(CacheFull):  # a guess does not wait
        await site.cache.stage(wanted(13), builds.of(wanted(13)), priority=Priority.PRIOR)
    order: list[int] = []

    async def ask(number: int, priority: Priority) -> None:
        await site.cache.stage(wanted(number), builds.of(wanted(number)), priority=priority)
        order.append(number)

    waiting = []
    for number, priority in ((11, Priority.INFERENCE), (12, Priority.STAT)):
        waiting.append(asyncio.create_task(ask(number, priority)))
        await asyncio.sleep(0.03)
    assert not order
    for done in ([12], [12, 11]):
        await site.cache.evict(name_of(len(done)))
        await asyncio.wait_for(asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED), 5)
        waiting = [task for task in waiting if not task.done()]
        assert order == done


async def test_who_waits_too_long_is_told(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "ROOM_SECONDS", 0.005)
    await fill(site, builds, 10)
    for number in range(10):
        site.cache.pin(name_of(number), Pin.HARD)
    caller = asyncio.create_task(site.cache.stage(wanted(11), builds.of(wanted(11))))
    await asyncio.sleep(0.02)
    site.time.now += staging.PATIENCE_SECONDS + 1
    with pytest.raises(Overloaded):
        await asyncio.wait_for(caller, 5)
    assert site.state(name_of(11)) is State.ABSENT


async def test_too_many_wait(site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isocenter.gpu_stager.cache.waiting.WAITING", 3)
    await fill(site, builds, 10)
    callers = [
        asyncio.create_task(site.cache.stage(wanted(number), builds.of(wanted(number))))
        for number in range(11, 15)
    ]
    done, waiting = await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [Overloaded]
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert len(site.cache.ledger.rows) == 10


async def test_a_guess_that_somebody_asks_for_is_no_guess_any_more(site: Site, builds: Builds) -> None:
    one, ledger = wanted(), site.cache.ledger
    builds.go.clear()
    guess = asyncio.create_task(site.cache.stage(one, builds.of(one), priority=Priority.PRIOR))
    await builds.begun.wait()
    assert ledger.prefetched == SIZE
    demanded = asyncio.create_task(site.cache.stage(one, builds.of(one), priority=Priority.STAT))
    await asyncio.sleep(0)
    builds.go.set()
    await asyncio.gather(guess, demanded)
    assert (ledger.prefetched, ledger.prefetch_used, builds.count) == (0, 1, 1)
    other = wanted(1)
    await site.cache.stage(other, builds.of(other), priority=Priority.BULK)
    await site.cache.stage(other, builds.of(other))
    assert (ledger.prefetched, ledger.prefetch_used) == (0, 2)


async def test_a_request_pins_no_softer_than_another_did(site: Site, builds: Builds) -> None:
    one = wanted()
    await site.cache.stage(one, builds.of(one), pin=Pin.HARD)
    await site.cache.stage(one, builds.of(one), pin=Pin.SOFT)
    assert site.cache.ledger.rows[one.name].pin is Pin.HARD
    site.cache.pin(one.name, Pin.NONE)
    assert site.cache.ledger.rows[one.name].pin is Pin.NONE


async def test_backpressure(tmp_path: Path, builds: Builds) -> None:
    site = Site(tmp_path)
    await site.cache.start()
    builds.go.clear()
    callers = []
    for number, pressed in ((0, False), (1, True)):
        one = wanted(number, size=4900)
        callers.append(asyncio.create_task(site.cache.stage(one, builds.of(one))))
        await builds.begun.wait()
        builds.begun.clear()
        assert site.cache.pressed is pressed
    builds.go.set()
    await asyncio.gather(*callers)
    assert not site.cache.pressed


async def test_dropping_a_study_takes_what_is_ready_leased_pinned_in_the_making_waiting_and_damaged(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "ROOM_SECONDS", 0.005)
    cache = site.cache
    for number in range(6):
        await cache.stage(wanted(number, study="gone"), builds.of(wanted(number, study="gone")))
    for number in (6, 7):
        await cache.stage(wanted(number, study="stays"), builds.of(wanted(number, study="stays")))
    cache.pin(name_of(0), Pin.HARD)
    lease = cache.lease(name_of(1))
    assert lease is not None
    await cache.damaged(name_of(2))
    await cache.damaged(name_of(6))
    assert site.on_disk("quarantine") == [name_of(2), name_of(6)]
    builds.go.clear()
    builds.begun.clear()
    making, waits = wanted(8, study="gone", size=4 * SIZE), wanted(9, study="gone", size=SIZE)
    callers = [asyncio.create_task(cache.stage(making, builds.of(making)))]
    await builds.begun.wait()
    callers.append(asyncio.create_task(cache.stage(waits, builds.of(waits))))
    await asyncio.sleep(0.02)
    await cache.drop(study_key="gone")
    assert site.on_disk() == [name_of(1), name_of(7)]
    assert site.on_disk("parts") == []
    assert site.on_disk("quarantine") == [name_of(6)]
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in errors] == [Withdrawn, Withdrawn]
    assert cache.find(study_key="gone") == []
    assert cache.lease(name_of(1)) is None
    cache.release(lease)
    await cache.reap()
    assert site.on_disk() == [name_of(7)]
    assert ("evicted", name_of(1), "dropped") in site.told


async def test_a_study_that_is_dropped_while_it_is_committed_is_not_there(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, loop, committing = wanted(), asyncio.get_running_loop(), asyncio.Event()
    go, real = threading.Event(), Directory.commit

    def commit(self: Directory, part: Path, entry: Entry) -> Path:
        path = real(self, part, entry)
        loop.call_soon_threadsafe(committing.set)
        go.wait(10)
        return path

    monkeypatch.setattr(Directory, "commit", commit)
    caller = asyncio.create_task(site.cache.stage(one, builds.of(one)))
    await committing.wait()
    loop.call_later(0.02, go.set)  # `drop` has cancelled the build by then
    await site.cache.drop(study_key="study", reason="destroyed")
    with pytest.raises(Withdrawn):
        await caller
    assert (site.on_disk(), site.state(one.name)) == ([], State.ABSENT)
    assert site.told == [("evicted", one.name, "destroyed")]


async def test_a_new_version_takes_the_place_of_the_old_one(site: Site, builds: Builds) -> None:
    old, new, other = wanted(), wanted(content=1), wanted(1)
    for each in (old, new, other):
        await site.cache.stage(each, builds.of(each))
    await site.cache.drop(study_key="study", series_key="series-0", keep=new.name)
    assert {row.name for row in site.cache.find()} == {new.name, other.name}
    assert site.told[-1] == ("evicted", old.name, "superseded")


async def test_a_damaged_entry_is_made_anew(site: Site, builds: Builds) -> None:
    one = wanted()
    await site.cache.stage(one, builds.of(one))
    lease = site.cache.lease(one.name)
    assert lease is not None
    await site.cache.damaged(one.name)
    assert not site.cache.renew(lease)
    assert (site.on_disk(), site.on_disk("quarantine")) == ([], [one.name])
    assert not (await site.cache.stage(one, builds.of(one))).hit
    row = site.cache.to_verify()
    assert row is not None
    assert row.name == one.name
    with pytest.raises(IntegrityError):
        await site.cache.entry(name_of(5))


async def test_a_restart_finds_what_was_ready_and_nothing_else(site: Site, builds: Builds) -> None:
    await fill(site, builds, 3)
    builds.go.clear()
    builds.begun.clear()
    caller = asyncio.create_task(site.cache.stage(wanted(5), builds.of(wanted(5))))
    await builds.begun.wait()
    site.limits = Limits(quota_bytes=0, grace_seconds=0.0)  # not known yet at a start
    cache = site.again()
    await cache.start()
    assert {row.name for row in cache.find()} == {name_of(number) for number in range(3)}
    assert cache.ledger.charged == 3 * SIZE
    assert (site.on_disk("parts"), site.on_disk("trash")) == ([], [])
    cache.ledger.limits = Limits(quota_bytes=10 * SIZE)
    assert (await cache.stage(wanted(1), builds.of(wanted(1)))).hit
    caller.cancel()
    await asyncio.wait({caller})


async def test_the_service_stops_in_the_middle_of_a_build(site: Site, builds: Builds) -> None:
    builds.go.clear()
    caller = asyncio.create_task(site.cache.stage(wanted(), builds.of(wanted())))
    await builds.begun.wait()
    await site.cache.stop()
    with pytest.raises(Withdrawn):
        await caller
    assert (site.on_disk("parts"), site.cache.ledger.charged) == ([], 0)


def breaking(
    monkeypatch: pytest.MonkeyPatch, broken: Directory, number: int, functions: Sequence[str]
) -> None:
    """These functions of `os` fail below one disk."""

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **named: Any) -> Any:
            path = str(Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target)
            if path.startswith(str(broken.root)):
                raise OSError(number, os.strerror(number))
            return real(target, *arguments, **named)

        return call

    for function in functions:
        monkeypatch.setattr(os, function, failing(getattr(os, function)))


@pytest.mark.parametrize(
    ("number", "functions"),
    [(errno.EIO, ["fsync"]), (errno.EROFS, ["mkdir"]), (errno.EROFS, ["rename"]), (errno.EIO, ["statvfs"])],
)
async def test_a_disk_that_fails_is_left_out_and_the_other_goes_on(
    tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch, number: int, functions: list[str]
) -> None:
    site = Site(tmp_path, disks=2)
    await site.cache.start()
    site.disks[0].free = 10**9 + 1
    await fill(site, builds, 1)
    assert site.on_disk(disk=0) == [name_of(0)]
    breaking(monkeypatch, site.disks[0], number, functions)
    one = wanted(1)
    staged = await site.cache.stage(one, builds.of(one))
    assert staged.path == site.disks[1].path(one.name)
    assert list(site.cache.broken) == [0]
    assert site.told == [
        ("ready", name_of(0), ""),
        ("evicted", name_of(0), "unknown"),
        ("ready", one.name, ""),
    ]
    again = await site.cache.stage(wanted(0), builds.of(wanted(0)))
    assert not again.hit
    assert again.path == site.disks[1].path(name_of(0))
    monkeypatch.undo()
    site.disks.reverse()  # both copies are there after a restart: one is enough
    cache = site.again()
    await cache.start()
    assert {row.disk for row in cache.find()} == {0}
    assert site.on_disk(disk=1) == []


async def test_a_build_that_fails_because_of_the_disk_goes_to_the_next_one(
    tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is that of an object store that is down: the disk is asked."""
    site = Site(tmp_path, disks=2)
    await site.cache.start()
    site.disks[0].free = 10**9 + 1

    async def fails_on_the_first(part: Path, making: Making) -> None:
        if part.is_relative_to(site.disks[0].root):
            breaking(monkeypatch, site.disks[0], errno.EIO, ["open"])
            raise StoreUnavailable("the disk of staged volumes fails")

    one = wanted()
    staged = await site.cache.stage(one, builds.of(one, fails_on_the_first))
    assert staged.path == site.disks[1].path(one.name)
    assert (list(site.cache.broken), builds.count) == ([0], 2)
    assert site.told == [("ready", one.name, "")]


async def test_no_disk_is_left(
    tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    breaking(monkeypatch, site.disks[0], errno.EIO, ["fsync"])
    with pytest.raises(StoreUnavailable):
        await site.cache.stage(wanted(), builds.of(wanted()))
    assert site.cache.ledger.charged == 0
    with pytest.raises(StoreUnavailable):
        await site.cache.stage(wanted(1), builds.of(wanted(1)))
    breaking(monkeypatch, site.disks[0], errno.EIO, ["scandir", "listdir"])
    with pytest.raises(StoreUnavailable):
        await site.again().start()


async def test_what_cannot_be_deleted_stays_charged_and_is_tried_again(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.cache.stage(wanted(), builds.of(wanted()))
    breaking(monkeypatch, site.disks[0], errno.ENOSPC, ["rename"])
    await site.cache.evict(name_of(0))
    assert (site.state(name_of(0)), site.cache.ledger.charged) == (State.EVICTING, SIZE)
    assert not site.cache.broken
    monkeypatch.undo()
    await site.cache.reap()
    assert (site.state(name_of(0)), site.on_disk()) == (State.ABSENT, [])


async def test_a_full_disk_is_not_a_broken_one(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, site.disks[0], errno.ENOSPC, ["fsync"])
    with pytest.raises(StoreUnavailable) as caught:
        await site.cache.stage(wanted(), builds.of(wanted()))
    assert not isinstance(caught.value, CacheBroken)
    assert not site.cache.broken
    assert site.on_disk("parts") == []


async def test_a_full_disk_is_not_blamed_for_an_object_store_that_is_down(
    site: Site, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds.error = StoreUnavailable("the object store is down")
    breaking(monkeypatch, site.disks[0], errno.ENOSPC, ["fsync"])
    with pytest.raises(StoreUnavailable, match="object store"):
        await site.cache.stage(wanted(), builds.of(wanted()))
    assert not site.cache.broken


async def test_a_build_that_was_given_up_does_not_go_to_the_next_disk(tmp_path: Path, builds: Builds) -> None:
    site = Site(tmp_path, disks=2)
    await site.cache.start()

    async def fails_when_it_is_left(part: Path, making: Making) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise CacheBroken("the disk of staged volumes fails") from None

    caller = asyncio.create_task(site.cache.stage(wanted(), builds.of(wanted(), fails_when_it_is_left)))
    await builds.begun.wait()
    caller.cancel()
    await asyncio.wait({caller}, timeout=5)
    assert caller.cancelled()
    assert (builds.count, len(site.cache.broken), site.cache.ledger.charged) == (1, 1, 0)


async def test_entries_go_to_the_disk_with_most_room_less_what_is_promised(
    tmp_path: Path, builds: Builds
) -> None:
    site = Site(tmp_path, disks=2, min_free=0.1)
    await site.cache.start()
    for disk, free in zip(site.disks, (6000, 8000), strict=True):
        disk.free, disk.total = free, 10_000
    builds.go.clear()
    callers = []
    for number in range(4):
        callers.append(asyncio.create_task(site.cache.stage(wanted(number), builds.of(wanted(number)))))
        await asyncio.wait_for(builds.begun.wait(), 10)
        builds.begun.clear()
    assert [row.disk for row in site.cache.ledger.rows.values()] == [1, 1, 0, 1]
    builds.go.set()
    await asyncio.gather(*callers)


async def test_the_free_space_of_a_disk_is_kept(site: Site, builds: Builds) -> None:
    await fill(site, builds, 4)
    site.time.now += 100
    site.disks[0].free, site.disks[0].total = 1500, 10_000
    one = wanted(9)
    await site.cache.stage(one, builds.of(one))
    assert [told[1] for told in site.told if told[0] == "evicted"] == [name_of(0)]
    site.disks[0].free = 0
    await site.cache.reap()
    assert [told[1] for told in site.told if told[0] == "evicted"] == [name_of(0), name_of(1)]
