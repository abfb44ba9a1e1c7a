"""What operators see: one trace from association to store, counts, and never a UID or a name."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from isocenter.common.errors import RejectReason
from isocenter.common.events.models import InstancesStored, Protocol
from isocenter.common.telemetry import STUDY_KEY, Counter, Gauge, Histogram, current_traceparent, recording
from isocenter.ingest.testing import FakeBus, World, make_ports

if TYPE_CHECKING:
    from pathlib import Path

    from isocenter.common.events.models import CloudEvent
    from isocenter.ingest.testing import Dicom, Scu


class TracingBus(FakeBus):
    """Notes the traceparent that the real bus would put into the headers."""

    async def publish(self, event: CloudEvent) -> None:
        if isinstance(event.data, InstancesStored):
            self.traceparents.append(current_traceparent())
        await super().publish(event)

    def __init__(self) -> None:
        super().__init__()
        self.traceparents: list[str | None] = []


async def test_one_trace_from_association_to_event_without_phi(
    world: World, scu: type[Scu], dicom: Dicom, tmp_path: Path
) -> None:
    exporter, stream, bus = InMemorySpanExporter(), io.StringIO(), TracingBus()
    telemetry = recording("ingest", exporter, stream)
    ports = make_ports(world.store, bus, world.keys, world.clock, telemetry)
    service = World(bus, world.clock, world.store, world.keys, ports, world.root).service()
    instance, bad = dicom.instance(), dicom.instance()
    files = [tmp_path / "good.dcm", tmp_path / "bad.dcm"]
    files[0].write_bytes(dicom.file(instance))
    # The first place where the UID stands is what the sender announces.
    other = str(bad.SOPInstanceUID)[:-1] + ("1" if bad.SOPInstanceUID[-1] != "1" else "2")
    files[1].write_bytes(dicom.file(bad).replace(bad.SOPInstanceUID.encode(), other.encode(), 1))
    await service.start()

    assert await scu(service.dicom_port).store(*files) == [0, 0xA900]
    await service.stop()

    spans = exporter.get_finished_spans()
    [association] = [span for span in spans if span.name == "association"]
    stores = [span for span in spans if span.name == "store"]
    assert association.attributes is not None
    assert association.context is not None
    attributes = dict(association.attributes)
    assert attributes.pop("isocenter.transfer_id")
    assert attributes == {
        "isocenter.protocol": "dimse",
        "isocenter.sender": "MODALITY",
        "isocenter.called_ae_title": "ISOCENTER",
        "isocenter.instances": 1,
        "isocenter.rejected": 1,
        "isocenter.aborted": False,
    }
    assert [span.parent.span_id for span in stores if span.parent] == [association.context.span_id] * 2
    good = next(span for span in stores if span.attributes and STUDY_KEY in span.attributes)
    assert good.attributes is not None
    assert good.context is not None
    assert good.attributes[STUDY_KEY] == world.keys.study_key(instance.StudyInstanceUID)
    [traceparent] = bus.traceparents
    assert traceparent is not None
    assert f"{good.context.trace_id:032x}-{good.context.span_id:016x}" in traceparent

    metrics = telemetry.metrics
    assert metrics.value(Counter.INGEST_INSTANCES, outcome="stored", protocol="dimse") == 1
    assert metrics.value(Counter.INGEST_INSTANCES, outcome="rejected") == 1
    assert metrics.value(Counter.INGEST_REJECTIONS, reason=RejectReason.SOP_MISMATCH.value) == 1
    assert metrics.value(Counter.INGEST_TRANSFERS, outcome="closed") == 1
    assert metrics.value(Histogram.INGEST_STORE) == 1
    assert metrics.value(Gauge.INGEST_ASSOCIATIONS) == 0

    told = stream.getvalue() + "".join(span.to_json() for span in spans)
    assert "instance.rejected" in told
    assert "association.released" in told
    for dataset in (instance, bad):
        for secret in (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID, "DOE"):
            assert secret not in told


async def test_a_resent_instance_counts_as_known(world: World, dicom: Dicom) -> None:
    intake = world.intake()
    async with intake.transfer(Protocol.STOW, "stow") as transfer:
        data = dicom.file(dicom.instance())
        for _ in range(2):
            async with transfer.instance() as receiver:
                await receiver.write(data)
                await receiver.finish()
    metrics = world.ports.telemetry.metrics
    assert metrics.value(Counter.INGEST_INSTANCES, outcome="stored") == 1
    assert metrics.value(Counter.INGEST_INSTANCES, outcome="known") == 1
    assert metrics.value(Counter.INGEST_BYTES, protocol="stow") == 2 * len(data)
