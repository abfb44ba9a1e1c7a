"""When senders hear Success: with the event durable, or with the store's record that it is to come."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol
from isocenter.common.objects.local import LocalObjectStore
from isocenter.ingest.app import build
from isocenter.ingest.domain import Outcome
from isocenter.ingest.pipeline import Intake, Transfer
from isocenter.ingest.settings import IngestSettings
from isocenter.ingest.testing import Dicom, FakeBus, World, make_ports

LATER = {"unannounced": 100}


def is_stored(event: CloudEvent) -> bool:
    return isinstance(event.data, InstancesStored)


async def send(transfer: Transfer, data: bytes) -> Outcome:
    async with transfer.instance() as receiver:
        await receiver.write(data)
        return await receiver.finish()


async def put(intake: Intake, *files: bytes) -> list[Outcome]:
    async with intake.transfer(Protocol.STOW, "stow") as transfer:
        return [await send(transfer, data) for data in files]


async def test_success_comes_before_the_event_and_the_event_comes(world: World, dicom: Dicom) -> None:
    world.bus.gate = asyncio.Event()
    intake = world.intake(**LATER)
    async with intake.transfer(Protocol.DIMSE, "MODALITY") as transfer:
        for _ in range(3):
            assert (await send(transfer, dicom.file(dicom.instance(study="1.2.3")))).stored
        assert [] == world.bus.stored
        world.bus.gate.set()
    assert [3] == [len(event.instances) for event in world.bus.stored]
    assert [3] == [event.instances for event in world.bus.closed]
    assert is_stored(world.bus.events[0]), "before the end of the transfer"


async def test_what_was_acknowledged_and_not_announced_is_announced_by_the_next_process(
    world: World, dicom: Dicom, tmp_path: Path
) -> None:
    """The bus takes nothing until the process is gone, and what is left is what a kill leaves."""
    world.bus.fail = is_stored
    intake = world.intake(**LATER)
    outcomes = await put(intake, *(dicom.file(dicom.instance()) for _ in range(5)))
    assert [True] * 5 == [outcome.stored for outcome in outcomes]
    assert 5 == intake.debts.count
    await world.store.close()

    store, bus = LocalObjectStore(world.root), FakeBus()
    later = Intake(make_ports(store, bus, world.keys, world.clock))
    assert 5 == await later.debts.settle()
    announced = [one.object_key for event in bus.stored for one in event.instances]
    assert sorted(announced) == [info.key async for info in store.list("instances/")]
    await store.close()


async def test_what_the_bus_refused_is_announced_when_it_is_back(world: World, dicom: Dicom) -> None:
    intake = world.intake(**LATER)
    world.bus.fail = is_stored
    assert (await put(intake, dicom.file(dicom.instance())))[0].stored
    with pytest.raises(BusUnavailable):
        await intake.debts.settle()
    world.bus.fail = lambda _: False
    assert 1 == await intake.debts.settle()
    assert 0 == intake.debts.count


async def test_an_instance_that_was_there_already_waits_for_its_event(world: World, dicom: Dicom) -> None:
    """Nobody knows what became of the first event: the store need not remember it."""
    data = dicom.file(dicom.instance())
    intake = world.intake(**LATER)
    assert (await put(intake, data))[0].stored
    world.bus.fail = is_stored
    assert not (await put(intake, data))[0].stored


async def test_beyond_the_watermark_senders_wait_for_the_event(world: World, dicom: Dicom) -> None:
    world.bus.gate = asyncio.Event()
    intake = world.intake(unannounced=2)
    async with intake.transfer(Protocol.DIMSE, "MODALITY") as transfer:
        for _ in range(2):
            assert (await send(transfer, dicom.file(dicom.instance(study="1.2.3")))).stored
        third = asyncio.create_task(send(transfer, dicom.file(dicom.instance(study="1.2.3"))))
        assert not (await asyncio.wait({third}, timeout=0.2))[0]
        world.bus.gate.set()
        assert (await third).stored
    assert 3 == sum(len(event.instances) for event in world.bus.stored)


@pytest.mark.parametrize(
    ("chosen", "embedded", "early"),
    [(None, True, True), (None, False, False), ("stored", False, True), ("published", True, False)],
)
async def test_the_bus_decides_unless_the_operator_does(
    world: World, chosen: str | None, *, embedded: bool, early: bool
) -> None:
    settings = IngestSettings.model_validate({"dicom_port": 0, "acknowledge": chosen})
    service = build(settings, replace(world.ports, bus_embedded=embedded))
    assert early == service.intake.may_announce_later
