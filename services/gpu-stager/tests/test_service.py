"""The running stager: requests over its socket, events in and out, restarts, damage."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from isocenter.common.errors import Misconfigured
from isocenter.common.events.models import (
    EvictionReason,
    PinKind,
    StagePriority,
    StageStudy,
    StudyEvicted,
    StudyStaged,
    UnstageStudy,
)
from isocenter.gpu_stager.agent.protocol import AgentError
from isocenter.gpu_stager.agent.server import Agent
from isocenter.gpu_stager.cache.rows import Pin, Priority
from isocenter.gpu_stager.client import AsyncStager, Stager, StagerUnavailable
from isocenter.gpu_stager.modes.verdict import Mode
from isocenter.gpu_stager.testing import World, ct, part10


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World.running(tmp_path) as world:
        yield world


async def aside(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A client blocks: its agent runs on this loop."""
    return await asyncio.to_thread(call, *arguments, **options)


async def test_a_program_gets_the_pixels_and_everything_to_use_them_right(world: World) -> None:
    datasets = ct(6)
    study = await world.settle(*part10(datasets))

    def use() -> None:
        with world.client() as stager, stager.open(study) as volume:
            assert Mode.NUMPY == stager.verdict.mode
            np.testing.assert_array_equal(volume.array, np.stack([one.pixel_array for one in datasets]))
            np.testing.assert_array_equal(np.from_dlpack(volume), volume.array)
            np.testing.assert_array_equal(np.asarray(volume), volume.array)
            assert (0.7, 0.8, 2.5) == volume.geometry.spacing
            hounsfield = volume.rescaled()
            assert np.float32 == hounsfield.dtype
            np.testing.assert_array_equal(hounsfield, volume.array.astype(np.float32) - 1024)
            kept = np.empty((2, 64, 64), "<i2")
            part = volume.load(start=1, stop=3, out=kept)
            np.testing.assert_array_equal(kept, volume.array[1:3])
            assert part.array is kept
            [row] = stager.status()["entries"]
            assert 1 == row["leases"]

    await aside(use)
    await world.until(lambda: not any(row.leases for row in world.service.node.cache.ledger.rows.values()))


async def test_the_same_from_asyncio(world: World) -> None:
    datasets = ct(3)
    study = await world.settle(*part10(datasets))
    async with AsyncStager(world.service.socket) as stager, await stager.open(study) as volume:
        np.testing.assert_array_equal(await volume.array(), np.stack([one.pixel_array for one in datasets]))
        assert [study] == [row["study_key"] for row in (await stager.status())["entries"]]


async def test_a_hundred_requests_fetch_each_object_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = ct(5)
    study = await world.settle(*part10(datasets))
    opened: list[str] = []
    fetcher = type(world.service.node.builder.fetcher)
    original = fetcher.open

    async def counted(self: Any, study_key: str, entry: Any) -> Any:
        opened.append(entry.object_key)
        return await original(self, study_key, entry)

    monkeypatch.setattr(fetcher, "open", counted)
    node = world.service.node
    done = await asyncio.gather(
        *(node.stage(study, priority=Priority.INFERENCE, pin=Pin.NONE, forced=False) for _ in range(100))
    )
    assert 5 == len(opened) == len(set(opened))
    assert 1 == len({one["path"] for [one] in done})


async def test_a_settled_study_is_staged_by_policy_and_told(tmp_path: Path) -> None:
    async with World.running(tmp_path, prefetch="CT") as world:
        world.site.clock.advance(100)
        study = await world.settle(*part10(ct(4)))
        await world.until(lambda: bool(world.seen))
        [told] = [event.data for event in world.seen]
        assert isinstance(told, StudyStaged)
        assert (study, "gpu-1", "numpy", 1, 1) == (
            told.study_key,
            told.node,
            told.mode.value,
            told.version,
            told.stacks,
        )
        assert world.site.clock.now() == told.received_at
        with_name = [span for span in world.spans.get_finished_spans() if "stage series" == span.name]
        assert 1 == len(with_name)
        assert with_name[0].parent is not None, "it belongs to the trace of the study"


async def test_what_the_policy_does_not_name_is_left_alone(tmp_path: Path) -> None:
    async with World.running(tmp_path, prefetch="MR,PT") as world:
        await world.settle(*part10(ct(2)))
        await asyncio.sleep(0.5)
        assert not world.service.node.cache.ledger.rows


async def test_priors_of_the_patient_come_along(tmp_path: Path) -> None:
    def dated(day: str, patient: str = "P1") -> Callable[[Dataset, int], None]:
        def change(dataset: Dataset, index: int) -> None:
            dataset.StudyDate, dataset.PatientID = day, patient

        return change

    async with World.running(tmp_path, prefetch="none", priors=1) as world:
        old = await world.settle(*part10(ct(2, study=1, change=dated("20200101"))))
        older = await world.settle(*part10(ct(2, study=2, change=dated("20190101"))))
        other = await world.settle(*part10(ct(2, study=3, change=dated("20210101", "P2"))))
    async with World.running(tmp_path, prefetch="CT", priors=1) as world:
        new = await world.settle(*part10(ct(2, study=4, change=dated("20220101"))))
        rows = world.service.node.cache.find
        await world.until(lambda: len(rows()) >= 2)
        await asyncio.sleep(0.3)
        assert {new, old} == {row.study_key for row in rows()}
        assert not {older, other} & {row.study_key for row in rows()}


async def test_late_slices_make_a_new_entry_and_the_old_one_goes(tmp_path: Path) -> None:
    async with World.running(tmp_path, prefetch="CT", grace_seconds=0) as world:
        datasets = ct(6)
        study = await world.settle(*part10(datasets[:4]))
        await world.until(lambda: len(world.seen) == 1)
        await world.settle(*part10(datasets[4:]))
        await world.until(lambda: len(world.seen) == 3)
        staged = [event.data for event in world.seen if isinstance(event.data, StudyStaged)]
        evicted = [event.data for event in world.seen if isinstance(event.data, StudyEvicted)]
        assert [1, 2] == [each.version for each in staged]
        assert [(staged[0].entry, EvictionReason.SUPERSEDED)] == [(e.entry, e.reason) for e in evicted]
        [row] = world.service.node.cache.find(study_key=study)
        assert staged[1].entry == row.name


async def test_commands_stage_and_unstage(world: World) -> None:
    study = await world.settle(*part10(ct(2)))
    now = world.site.clock.now()
    await world.command(
        StageStudy(
            study_key=study,
            priority=StagePriority.STAT,
            pin=PinKind.HARD,
            requested_by="ward-7",
            requested_at=now,
        )
    )
    await world.until(lambda: bool(world.seen))
    [row] = world.service.node.cache.find(study_key=study)
    assert "hard" == row.pin.value
    await world.command(UnstageStudy(study_key=study, requested_by="ward-7", requested_at=now))
    await world.until(lambda: len(world.seen) == 2)
    assert isinstance(world.seen[1].data, StudyEvicted)
    assert not world.service.node.cache.ledger.rows
    assert not list((world.site.folder / "staged" / "entries").iterdir())


async def test_a_restart_finds_what_was_staged(tmp_path: Path) -> None:
    async with World.running(tmp_path) as world:
        study = await world.settle(*part10(ct(2)))
        with_first = await aside(lambda: _stage(world, study))
    async with World.running(tmp_path) as world:
        again = await aside(lambda: _stage(world, study))
    assert (False, True) == (with_first["hit"], again["hit"])
    assert with_first["path"] == again["path"]


def _stage(world: World, study: str) -> dict[str, Any]:
    with world.client() as stager:
        [one] = stager.stage(study)
        return one


async def test_a_damaged_volume_is_noticed_and_made_anew(world: World) -> None:
    datasets = ct(3)
    study = await world.settle(*part10(datasets))

    def use() -> None:
        with world.client() as stager:
            with stager.open(study) as volume:
                path = volume._series.path / volume.stack.data
                data = bytearray(path.read_bytes())
                data[1000] ^= 1
                path.write_bytes(data)
                with pytest.raises(Exception, match="not what was written"):
                    volume.load(verify=True)
            with stager.open(study) as volume:
                loaded = volume.load(verify=True)
                np.testing.assert_array_equal(loaded.array, np.stack([d.pixel_array for d in datasets]))

    await aside(use)
    await world.until(lambda: len(world.seen) == 3)
    assert ["damaged"] == [e.data.reason.value for e in world.seen if isinstance(e.data, StudyEvicted)]


async def test_the_scrubber_finds_damage_by_itself(tmp_path: Path) -> None:
    async with World.running(tmp_path, scrub_seconds=0.1) as world:
        study = await world.settle(*part10(ct(2)))
        one = await aside(lambda: _stage(world, study))
        file = Path(one["path"]) / "0" / "c" / "0" / "0" / "0"
        data = bytearray(file.read_bytes())
        data[77] ^= 8
        file.write_bytes(data)
        await world.until(lambda: any(isinstance(e.data, StudyEvicted) for e in world.seen))
        assert not world.service.node.cache.find()


@pytest.mark.parametrize(
    ("target", "code"), [("a" * 26, "not-found"), ("1.2.3.4", "not-found"), ("../../etc", "not-found")]
)
async def test_what_is_not_there_is_said(world: World, target: str, code: str) -> None:
    def use() -> None:
        with world.client() as stager, pytest.raises(AgentError) as refused:
            stager.open(target)
        assert code == refused.value.code

    await aside(use)


async def test_a_study_without_pixels_says_so(world: World) -> None:
    def report(dataset: Dataset, index: int) -> None:
        del dataset[0x7FE00010]

    study = await world.settle(*part10(ct(1, change=report)))

    def use() -> None:
        with world.client() as stager, pytest.raises(AgentError, match="no-pixels") as refused:
            stager.stage(study)
        assert "not-stageable" == refused.value.code

    await aside(use)


async def test_without_staging_only_what_is_here_is_opened(world: World) -> None:
    study = await world.settle(*part10(ct(1)))

    def use() -> None:
        with world.client() as stager:
            with pytest.raises(AgentError, match="not staged"):
                stager.open(study, stage=False)
            stager.stage(study)
            with stager.open(study, stage=False) as volume:
                assert (1, 64, 64) == volume.array.shape

    await aside(use)


async def test_garbage_on_the_socket_ends_nothing(world: World) -> None:
    reader, writer = await asyncio.open_unix_connection(world.service.socket)
    writer.write(b"\xff\xfe nonsense\n[]\n{}\n" + b'{"id": 7, "op": "open"}\n')
    writer.write(b'{"id": 8, "op": "stage", "target": 1}\n')
    await writer.drain()
    lines = [await reader.readline() for _ in range(5)]
    assert all(b'"error"' in line for line in lines)
    writer.close()
    study = await world.settle(*part10(ct(1)))
    assert (await aside(lambda: _stage(world, study)))["modality"] == "CT"


async def test_only_this_user_can_ask_and_look(world: World) -> None:
    study = await world.settle(*part10(ct(1)))
    one = await aside(lambda: _stage(world, study))
    assert 0o600 == stat.S_IMODE(world.service.socket.stat().st_mode)
    assert 0o700 == stat.S_IMODE(world.service.socket.parent.stat().st_mode)
    assert 0o700 == stat.S_IMODE((world.site.folder / "staged").stat().st_mode)
    assert 0o600 == stat.S_IMODE(world.site.folder.joinpath(one["path"], "0/c/0/0/0").stat().st_mode)


async def test_nobody_answers_after_a_stop(tmp_path: Path) -> None:
    async with World.running(tmp_path) as world:
        socket = world.service.socket
    with pytest.raises(StagerUnavailable):
        Stager(socket)


async def test_a_second_stager_on_the_same_socket_does_not_start(world: World, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="another stager"):
        await Agent(world.service.node, world.service.socket).start()


async def test_a_socket_that_others_could_replace_is_not_trusted(world: World) -> None:
    folder = world.service.socket.parent
    folder.chmod(0o777)
    with pytest.raises(Misconfigured, match="others"):
        await aside(world.client)
    with pytest.raises(Misconfigured, match="others"):
        await Agent(world.service.node, folder / "another.sock").start()


async def test_health_names_what_is_wrong(world: World) -> None:
    checks = {check.name: check.ok for check in await world.service.health()}
    assert checks["cache"]
    assert checks["reaper"]
    world.service.node.cache.broken[0] = "the disk fails"
    checks = {check.name: check.ok for check in await world.service.health()}
    assert not checks["cache"]
