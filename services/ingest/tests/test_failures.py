"""What the sender hears, and what is left, when the store or the bus fails at each step."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import pytest

from isocenter.common.errors import BusUnavailable, RejectReason, StoreFull
from isocenter.common.events.models import InstanceRejected, Protocol, TransferClosed
from isocenter.common.objects.beside import PlainStaging
from isocenter.ingest.domain import Outcome, reason_of, sender_name
from isocenter.ingest.testing import World, make_ports

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from isocenter.common.objects.local import LocalObjectStore
    from isocenter.common.objects.ports import PutResult, Staging
    from isocenter.ingest.pipeline import Intake
    from isocenter.ingest.testing import Dicom


@dataclass
class FaultyStaging(PlainStaging):
    """A real staging with a disk that is full at `where`."""

    inner: Staging
    where: str
    error: Exception

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.inner.__aexit__(kind, error, trace)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.where == "write":
            raise self.error
        await self.inner.write(data)

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        if self.where == "before commit":
            raise self.error
        result = await self.inner.commit(key, metadata)
        if self.where == "after commit":
            raise self.error
        return result


@dataclass
class FaultyStore:
    """A real store whose stagings fail at `where`."""

    inner: LocalObjectStore
    where: str
    error: Exception = field(default_factory=lambda: StoreFull("no space"))

    def stage(self) -> FaultyStaging:
        return FaultyStaging(self.inner.stage(), self.where, self.error)


def broken(world: World, where: str, error: Exception | None = None) -> Intake:
    """An intake whose store fails."""
    store = FaultyStore(world.store, where, error or StoreFull("no space"))  # type: ignore[arg-type]  # the fixture's store is local
    ports = make_ports(store, world.bus, world.keys, world.clock)  # type: ignore[arg-type]  # only stage is used
    return World(world.bus, world.clock, world.store, world.keys, ports, world.root).intake()


async def put(intake: Intake, data: bytes, *, piece: int = 1_000_000) -> Outcome:
    async with intake.transfer(Protocol.STOW, "stow") as transfer, transfer.instance() as receiver:
        for start in range(0, len(data), piece):
            await receiver.write(data[start : start + piece])
        return await receiver.finish()


@pytest.mark.parametrize("where", ["write", "before commit", "after commit"])
async def test_a_full_store_is_never_success(world: World, dicom: Dicom, where: str) -> None:
    outcome = await put(broken(world, where), dicom.file(dicom.instance(pixels=3_000_000)))
    assert (outcome.reason, outcome.status) == (RejectReason.OUT_OF_RESOURCES, 0xA700)
    assert world.bus.stored == []
    assert [event.reason for event in world.bus.rejected] == [RejectReason.OUT_OF_RESOURCES]
    assert world.bus.closed == []
    assert world.staged() == []


async def test_an_error_of_the_operating_system_is_out_of_resources(world: World, dicom: Dicom) -> None:
    outcome = await put(broken(world, "write", OSError(5, "EIO")), dicom.file(dicom.instance()))
    assert outcome.status == 0xA700


async def test_a_defect_of_ours_is_a_processing_failure(world: World, dicom: Dicom) -> None:
    outcome = await put(broken(world, "write", ZeroDivisionError()), dicom.file(dicom.instance()))
    assert outcome.status == 0x0110


async def test_after_a_failure_the_same_instance_can_be_stored(world: World, dicom: Dicom) -> None:
    data = dicom.file(dicom.instance())
    assert not (await put(broken(world, "after commit"), data)).stored
    assert (await put(world.intake(), data)).stored
    assert len(await world.objects()) == 1
    assert len(world.bus.stored) == 1


async def test_a_bus_that_takes_no_closing_word_does_not_hold_the_transfer(
    world: World, dicom: Dicom
) -> None:
    world.bus.fail = lambda event: isinstance(event.data, (TransferClosed, InstanceRejected))
    assert (await put(world.intake(), dicom.file(dicom.instance()))).stored

    hanging = world.intake(close_seconds=0.05)
    async with asyncio.timeout(5):
        async with hanging.transfer(Protocol.STOW, "stow") as transfer:
            async with transfer.instance() as receiver:
                await receiver.write(dicom.file(dicom.instance()))
                assert (await receiver.finish()).stored
            world.bus.gate = asyncio.Event()
            transfer.reject(RejectReason.MALFORMED, 0xC000)


async def test_a_flood_of_refusals_does_not_grow_without_end(world: World) -> None:
    world.bus.gate = asyncio.Event()
    intake = world.intake(close_seconds=0.05)
    async with intake.transfer(Protocol.DIMSE, "X") as transfer:
        for _ in range(1000):
            transfer.reject(RejectReason.MALFORMED, 0xC000)
        await asyncio.sleep(0)
        assert world.bus.attempts <= 64
    assert transfer.refused == 1000


async def test_an_instance_that_is_not_finished_leaves_nothing(world: World, dicom: Dicom) -> None:
    intake = world.intake()
    async with intake.transfer(Protocol.STOW, "stow") as transfer, transfer.instance() as receiver:
        await receiver.write(dicom.file(dicom.instance(pixels=3_000_000)))
        assert world.staged()
    assert world.staged() == []
    assert world.bus.events == []


async def test_a_transfer_that_is_cancelled_discards_and_tells(world: World, dicom: Dicom) -> None:
    whole, half = (dicom.file(dicom.instance(pixels=2_000_000)) for _ in range(2))
    intake, begun = world.intake(), asyncio.Event()

    async def receive() -> None:
        async with intake.transfer(Protocol.STOW, "stow") as transfer:
            async with transfer.instance() as receiver:
                await receiver.write(whole)
                await receiver.finish()
            async with transfer.instance() as receiver:
                await receiver.write(half[:1_500_000])
                begun.set()
                await asyncio.sleep(60)

    task = asyncio.create_task(receive())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [whole] == list((await world.objects()).values())
    assert [(event.instances, event.aborted) for event in world.bus.closed] == [(1, True)]
    assert world.staged() == []


async def test_a_header_beyond_the_bound_is_refused(world: World, dicom: Dicom) -> None:
    instance = dicom.instance()
    instance.add_new(0x00091002, "OB", bytes(300_000))
    outcome = await put(world.intake(header_bytes=100_000), dicom.file(instance), piece=50_000)
    assert outcome.reason is RejectReason.TOO_LARGE
    assert world.staged() == []


async def test_every_reason_has_a_status_that_is_a_failure() -> None:
    for reason in RejectReason:
        assert Outcome(reason).status not in {0, 1, 0xB000, 0xB006, 0xB007}


def test_what_an_error_means_to_the_sender() -> None:
    assert reason_of(BusUnavailable()) is RejectReason.OUT_OF_RESOURCES
    assert reason_of(StoreFull()) is RejectReason.OUT_OF_RESOURCES
    assert reason_of(KeyError()) is RejectReason.UNKNOWN


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"CT_SCANNER      ", "CT_SCANNER"),
        (b"\0\0\0\0", ""),
        (b"A\xe4\x01\nB", "A???B"),
        (b"X" * 40, "X" * 16),
        ("MODALITY", "MODALITY"),
    ],
)
def test_an_ae_title_is_made_fit_for_events(raw: bytes | str, name: str) -> None:
    assert sender_name(raw) == name
