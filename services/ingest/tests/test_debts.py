"""An object whose event is not known to be durable is announced later, by this process or the next one."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from isocenter.common.errors import BusUnavailable, InvalidEvent
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol
from isocenter.common.objects.journal import Buffer
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.ports import ObjectInfo, PutResult
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


@dataclass
class ChoosyBus(FakeBus):
    """Refuses the events of some studies for good."""

    refused: set[str] = field(default_factory=set)

    async def publish(self, event: CloudEvent) -> None:
        if event.subject in self.refused:
            raise InvalidEvent("an attribute breaks the rules")
        await super().publish(event)


async def test_what_can_never_be_announced_holds_nobody_else_up(world: World, dicom: Dicom) -> None:
    world.bus.fail = stored_events
    intake = world.intake()
    for study in ("1.2.1", "1.2.2", "1.2.3"):
        await put(intake, dicom.file(dicom.instance(study=study)))
    async with world.store.stage() as staging:
        await staging.write(b"somebody else's")
        await staging.commit("instances/0/other", {"study_key": "x"}, pending=True)
    later = await after_a_restart(world)
    bus = ChoosyBus(refused={min(map(world.keys.study_key, ("1.2.1", "1.2.2", "1.2.3")))})

    assert 2 == await Intake(make_ports(later.store, bus, world.keys, world.clock)).debts.settle()
    assert 2 == len(bus.stored)
    await later.store.close()


async def test_an_object_whose_receiver_is_cut_off_in_its_commit_is_announced(
    world: World, dicom: Dicom
) -> None:
    """The commit runs on in its thread: nobody hears of its success, and the object is there."""
    intake, loop = world.intake(), asyncio.get_running_loop()
    began, go_on = asyncio.Event(), threading.Event()
    assert isinstance(world.store, LocalObjectStore)
    shelf = world.store._shelf
    commit_small = shelf.commit_small

    def slow(payload: Buffer, info: ObjectInfo, *, pending: bool) -> PutResult:
        loop.call_soon_threadsafe(began.set)
        go_on.wait(10)
        return commit_small(payload, info, pending=pending)

    shelf.commit_small = slow  # type: ignore[method-assign]  # a slow disk
    receiving = asyncio.create_task(put(intake, dicom.file(dicom.instance())))
    async with asyncio.timeout(20):
        await began.wait()
    receiving.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await receiving

    assert 1 == await intake.debts.settle()
    assert list(await world.objects()) == [world.bus.stored[0].instances[0].object_key]
