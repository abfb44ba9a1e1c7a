"""An object whose event is not known to be durable is announced later, by this process or the next one."""

from __future__ import annotations

import asyncio

import pytest

from isocenter.common.errors import BusUnavailable
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol
from isocenter.common.objects.local import LocalObjectStore
from isocenter.ingest.domain import Outcome
from isocenter.ingest.pipeline import Intake
from isocenter.ingest.testing import Dicom, FakeBus, World, make_ports


def stored_events(event: CloudEvent) -> bool:
    return isinstance(event.data, InstancesStored)


async def put(intake: Intake, data: bytes) -> Outcome:
    async with intake.transfer(Protocol.STOW, "stow") as transfer, transfer.instance() as receiver:
        await receiver.write(data)
        return await receiver.finish()


async def after_a_restart(world: World) -> World:
    """The same directory with another process's eyes: the first store lets go, a second one opens."""
    await world.store.close()
    store = LocalObjectStore(world.root)
    bus = FakeBus()
    return World(
        bus, world.clock, store, world.keys, make_ports(store, bus, world.keys, world.clock), world.root
    )


async def test_what_the_bus_refused_is_announced_when_it_is_back(world: World, dicom: Dicom) -> None:
    intake = world.intake()
    world.bus.fail = stored_events
    assert not (await put(intake, dicom.file(dicom.instance()))).stored
    with pytest.raises(BusUnavailable):
        await intake.debts.settle()
    world.bus.fail = lambda _: False

    assert 1 == await intake.debts.settle()
    assert 1 == len(world.bus.stored)
    assert list(await world.objects()) == [world.bus.stored[0].instances[0].object_key]
    assert 0 == await intake.debts.settle()


async def test_what_was_announced_is_not_owed_by_the_next_process(world: World, dicom: Dicom) -> None:
    intake = world.intake()
    assert (await put(intake, dicom.file(dicom.instance()))).stored
    await intake.debts.stop()
    later = await after_a_restart(world)

    assert 0 == await later.intake().debts.settle()
    assert [] == later.bus.stored
    await later.store.close()


async def test_the_next_process_announces_the_same_fact(world: World, dicom: Dicom) -> None:
    """Sender, protocol, transfer and time are those of the first attempt."""
    world.bus.fail = stored_events
    files = [dicom.file(dicom.instance(study="1.2.3")) for _ in range(3)]
    intake = world.intake()
    async with intake.transfer(Protocol.DIMSE, "MODALITY") as transfer:
        for data in files:
            async with transfer.instance() as receiver:
                await receiver.write(data)
                assert not (await receiver.finish()).stored
    received_at = world.clock.now()
    later = await after_a_restart(world)
    world.clock.advance(3600)

    assert 3 == await later.intake().debts.settle()
    (event,) = later.bus.stored
    assert (event.transfer_id, event.sender, event.protocol) == (transfer.id, "MODALITY", Protocol.DIMSE)
    assert {received_at} == {instance.received_at for instance in event.instances}
    assert set(await later.objects()) == {instance.object_key for instance in event.instances}
    await later.store.close()


async def test_a_debt_is_paid_when_the_sender_tries_again_first(world: World, dicom: Dicom) -> None:
    data = dicom.file(dicom.instance())
    intake = world.intake()
    world.bus.fail = stored_events
    await put(intake, data)
    world.bus.fail = lambda _: False
    assert (await put(intake, data)).stored

    assert 0 == await intake.debts.settle()
    assert 1 == len(world.bus.stored)


async def test_a_running_service_pays_what_it_finds_at_its_start(world: World, dicom: Dicom) -> None:
    world.bus.fail = stored_events
    await put(world.intake(), dicom.file(dicom.instance()))
    later = await after_a_restart(world)
    service = later.service()
    await service.start()
    try:
        async with asyncio.timeout(10):
            await later.bus.published.wait()
    finally:
        await service.stop()
        await later.store.close()

    third = await after_a_restart(later)
    assert 0 == await third.intake().debts.settle()
    await third.store.close()
