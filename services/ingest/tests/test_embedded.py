"""Over the embedded bus: what was acknowledged is in the log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.events.codec import decode
from isocenter.common.events.models import InstancesStored, TransferClosed
from isocenter.common.objects.sealing import Unsealed
from isocenter.common.service import Ports
from isocenter.common.telemetry import noop
from isocenter.ingest.app import build
from isocenter.ingest.settings import IngestSettings

if TYPE_CHECKING:
    from pathlib import Path

    from isocenter.ingest.testing import Dicom, Scu, World


async def test_acknowledged_instances_are_in_the_log_of_the_bus(
    world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    path, telemetry = tmp_path / "bus.sqlite", noop("ingest")
    transport = EmbeddedTransport(path)
    ports = Ports(
        bus=transport.bus("ingest", telemetry),
        store=world.store,
        sealing=Unsealed(),
        keys=world.keys,
        telemetry=telemetry,
        clock=world.clock,
        bus_embedded=True,
    )
    service = build(IngestSettings(dicom_port=0), ports)
    await service.start()
    assert [check for check in await service.health() if not check.ok] == []
    files = []
    for number in range(5):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(dicom.file(dicom.instance()))

    assert await scu(service.dicom_port).store(*files) == [0] * 5

    await asyncio.wait_for(service.stop(), 30)
    await transport.close()
    inspector = EmbeddedTransport(path).inspector()
    events = [decode(record.headers, record.value) async for record in inspector.read("imaging.instance.v1")]
    announced = [
        i.object_key for e in events if isinstance(e.data, InstancesStored) for i in e.data.instances
    ]
    assert sorted(announced) == sorted(await world.objects())
    assert sum(isinstance(event.data, TransferClosed) for event in events) == 5
