"""C-STORE and C-ECHO with pynetdicom as sender against the real acceptor and a real object store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydicom.uid import generate_uid

from isocenter.common.errors import RejectReason
from isocenter.common.events.models import InstancesStored, Protocol
from isocenter.ingest.testing import until

if TYPE_CHECKING:
    from pathlib import Path

    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, Scu, World


async def until_closed(world: World, count: int = 1) -> None:
    """`transfer.closed` comes after the release: wait for it."""
    await until(lambda: len(world.bus.closed) >= count)


async def test_echo(service: IngestService, scu: type[Scu]) -> None:
    assert await scu(service.dicom_port).echo() == 0


async def test_a_stored_instance_is_kept_bit_for_bit_and_announced(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    instance = dicom.instance(pixels=500_000)
    file.write_bytes(dicom.file(instance))

    assert await scu(service.dicom_port).store(file) == [0]

    objects = await world.objects()
    [event] = world.bus.stored
    [stored] = event.instances
    assert [stored.object_key] == list(objects)
    kept = objects[stored.object_key]
    assert dicom.data_set(kept) == dicom.data_set(file.read_bytes())
    assert stored.size_bytes == len(kept)
    assert stored.instance_key == world.keys.instance_key(instance.SOPInstanceUID)
    assert stored.series_key == world.keys.series_key(instance.SeriesInstanceUID)
    assert event.study_key == world.keys.study_key(instance.StudyInstanceUID)
    assert (event.protocol, event.sender) == (Protocol.DIMSE, "MODALITY")

    await until_closed(world)
    [closed] = world.bus.closed
    assert (closed.transfer_id, closed.instances, closed.aborted) == (event.transfer_id, 1, False)


async def test_what_the_object_is_can_be_read_from_its_metadata(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom.file(dicom.instance()))
    await scu(service.dicom_port).store(file)

    [event] = world.bus.stored
    [stored] = event.instances
    info = await world.store.head(stored.object_key)
    assert dict(info.metadata) == {
        "study_key": event.study_key,
        "series_key": stored.series_key,
        "instance_key": stored.instance_key,
        "content_digest": stored.content_digest,
        "transfer_syntax_uid": stored.transfer_syntax_uid,
        "sop_class_uid": stored.sop_class_uid,
        "received_at": stored.received_at.isoformat(),
        "sender": "MODALITY",
        "protocol": "dimse",
        "transfer_id": event.transfer_id,
        "sealing": "none",
    }


async def test_a_resent_instance_is_success_one_object_and_the_same_fact(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom.file(dicom.instance()))

    assert await scu(service.dicom_port).store(file, file) == [0, 0]
    world.clock.advance(3600)
    assert await scu(service.dicom_port).store(file) == [0]

    assert len(await world.objects()) == 1
    facts = [event.instances for event in world.bus.stored]
    assert facts == [facts[0]] * 3


async def test_the_same_uid_with_other_bytes_is_kept_beside_the_first(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("a.dcm", "b.dcm")]
    study, series, sop = (str(generate_uid()) for _ in range(3))
    for file, name in zip(files, ("DOE^JANE", "ROE^JANE"), strict=True):
        file.write_bytes(dicom.file(dicom.instance(name=name, study=study, series=series, sop=sop)))

    assert await scu(service.dicom_port).store(*files) == [0, 0]

    kept = {dicom.data_set(data) for data in (await world.objects()).values()}
    assert kept == {dicom.data_set(file.read_bytes()) for file in files}
    one, other = (event.instances[0] for event in world.bus.stored)
    assert one.instance_key == other.instance_key
    assert one.object_key != other.object_key


async def test_c_store_and_stow_of_one_instance_have_one_object_key(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    data = dicom.file(dicom.instance())
    file = tmp_path / "ct.dcm"
    file.write_bytes(data)
    intake = world.intake()
    async with intake.transfer(Protocol.STOW, "stow") as transfer, transfer.instance() as receiver:
        await receiver.write(data)
        assert (await receiver.finish()).stored
    assert await scu(service.dicom_port).store(file) == [0]
    assert [data] == list((await world.objects()).values())


async def test_two_associations_at_once(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    study = generate_uid()
    files = []
    for number in range(20):
        file = tmp_path / f"{number}.dcm"
        file.write_bytes(dicom.file(dicom.instance(study=study, pixels=30_000 * number)))
        files.append(file)
    sender = scu(service.dicom_port)

    one, other = await asyncio.gather(sender.store(*files[:10]), sender.store(*files[10:]))

    assert one == other == [0] * 10
    assert len(await world.objects()) == 20
    await until_closed(world, 2)
    assert [10, 10] == [event.instances for event in world.bus.closed]
    assert len({event.transfer_id for event in world.bus.closed}) == 2


async def test_success_waits_for_the_event(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom.file(dicom.instance()))
    world.bus.gate = asyncio.Event()

    sending = asyncio.create_task(scu(service.dicom_port).store(file))
    await until(lambda: world.bus.attempts)
    assert len(await world.objects()) == 1
    await asyncio.sleep(0.1)
    assert not sending.done()

    world.bus.gate.set()
    assert await sending == [0]


async def test_without_bus_no_success_and_a_later_send_succeeds(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom.file(dicom.instance()))
    world.bus.fail = lambda event: isinstance(event.data, InstancesStored)

    assert await scu(service.dicom_port).store(file, file) == [0xA700, 0xA700]
    assert world.bus.stored == []
    assert [event.reason for event in world.bus.rejected] == [RejectReason.OUT_OF_RESOURCES] * 2

    world.bus.fail = lambda _: False
    assert await scu(service.dicom_port).store(file) == [0]
    assert len(await world.objects()) == 1


async def test_a_bus_that_never_answers_is_no_success(
    world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom.file(dicom.instance()))
    service = world.service(publish_timeout_seconds=0.2)
    await service.start()
    world.bus.gate = asyncio.Event()
    assert await scu(service.dicom_port).store(file) == [0xA700]
    world.bus.gate.set()
    await service.stop()


async def test_small_pdus_both_ways(world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom.file(dicom.instance(pixels=50_000)))
    service = world.service(max_pdu_bytes=4096)
    await service.start()
    # 8 bytes is the least pynetdicom takes: our response comes in fragments of 2.
    assert await scu(service.dicom_port, max_pdu=8).store(file) == [0]
    [kept] = (await world.objects()).values()
    assert dicom.data_set(kept) == dicom.data_set(file.read_bytes())
    await service.stop()
