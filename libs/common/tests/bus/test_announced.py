"""An announcement names a study by its UID, and others choose its id and key: none of it is in a span."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from isocenter.common.errors import InvalidInstance, RejectReason
from isocenter.common.events.codec import encode
from isocenter.common.events.models import CloudEvent, LocationKind, StudyAnnounced, StudyLocation
from isocenter.common.index.records import OutboxEntry
from isocenter.common.telemetry import recording

UID = "1.2.826.0.1.3680043.10.54321.1"


@pytest.mark.parametrize("fails", [False, True])
async def test_no_uid_reaches_a_span(
    fails: bool, backend: Any, make: Any, until: Callable[..., Awaitable[None]]
) -> None:
    spans = InMemorySpanExporter()
    telemetry = recording("one", spans)
    topic = await backend.topic(1, ("one.h",))
    bus, seen = backend.bus("one", telemetry), list[CloudEvent]()

    async def handle(event: CloudEvent) -> None:
        seen.append(event)
        if fails:
            raise InvalidInstance(RejectReason.MALFORMED)

    bus.subscribe("h", topic, {StudyAnnounced: handle})
    await bus.start()
    data = StudyAnnounced(
        study_instance_uid=UID,
        location=StudyLocation(kind=LocationKind.DICOMWEB, ref=f"https://pacs.example/{UID}"),
        sender="RIS_EAST",
    )
    known = make.event()
    event = CloudEvent(id=f"DOE-JANE-{UID}", source="/east/DOE-JANE", time=known.time, data=data)
    headers, body = encode(event)
    entry = OutboxEntry(
        event_id="one",
        topic=topic,
        key=UID,
        headers={name: value.decode() for name, value in headers} | {"ce_subject": UID},
        body=body,
    )
    await bus.publish_entry(entry)
    await until(lambda: any(span.name.startswith("process") for span in spans.get_finished_spans()))
    await bus.stop()
    telemetry.shutdown()

    assert [event] == seen
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert topic in told
    assert UID not in told
    assert "DOE-JANE" not in told
