"""One valid event of each type, as a producer would build it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from isocenter.common.events.models import (
    CloudEvent,
    Event,
    InstancesStored,
    LocationKind,
    Protocol,
    SettleReason,
    StoredInstance,
    StudyAnnounced,
    StudyLocation,
    StudySettled,
)

NOON = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
KEY = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def settled() -> StudySettled:
    return StudySettled(
        study_key=KEY,
        version=3,
        reason=SettleReason.QUIET,
        series=1,
        instances=2,
        size_bytes=3,
        modalities=["CT"],
        revision=f"revisions/{KEY}/3-1",
        manifests=[f"manifests/{KEY}/1"],
        settled_at=NOON,
    )


@pytest.fixture
def stored() -> InstancesStored:
    return InstancesStored(
        study_key=KEY,
        transfer_id="t-1",
        protocol=Protocol.DIMSE,
        sender="CT_ROOM_2",
        instances=[
            StoredInstance(
                instance_key=KEY,
                series_key=KEY,
                object_key="instances/ab/abc",
                content_digest="0" * 64,
                size_bytes=10,
                sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                received_at=NOON,
            )
        ],
    )


@pytest.fixture
def announced() -> StudyAnnounced:
    return StudyAnnounced(
        study_instance_uid="1.2.826.0.1.3680043.10.54321.1",
        location=StudyLocation(kind=LocationKind.S3, ref="s3://bucket/prefix/1"),
        sender="RIS_EAST",
    )


@pytest.fixture
def cloud_event() -> Callable[..., CloudEvent]:
    def build(data: Event, **attributes: Any) -> CloudEvent:
        return CloudEvent(
            **{"id": "event-1", "source": "/isocenter/test", "time": NOON, "data": data} | attributes
        )

    return build
