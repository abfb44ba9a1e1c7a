"""C-STORE and C-ECHO with pynetdicom as sender against the real acceptor and a real object store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isocenter.ingest.app import IngestService
    from isocenter.ingest.testing import Dicom, Scu, World


async def test_echo(service: IngestService, scu: type[Scu]) -> None:
    assert await scu(service.dicom_port).echo() == 0


async def test_a_stored_instance_is_kept_bit_for_bit_and_announced(
    service: IngestService, world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    file = tmp_path / "ct.dcm"
    file.write_bytes(dicom.file(dicom.instance(pixels=500_000)))

    assert await scu(service.dicom_port).store(file) == [0]

    objects = await world.objects()
    [event] = world.bus.stored
    [stored] = event.instances
    assert [stored.object_key] == list(objects)
    assert dicom.data_set(objects[stored.object_key]) == dicom.data_set(file.read_bytes())
