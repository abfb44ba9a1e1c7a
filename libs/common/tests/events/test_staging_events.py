"""What the GPU stager says and hears: what may be left out, and what has no place in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from isocenter.common.errors import InvalidEvent
from isocenter.common.events import codec
from isocenter.common.events.models import (
    CloudEvent,
    Event,
    EvictionReason,
    PinKind,
    StagePriority,
    StageStudy,
    StagingMode,
    StudyEvicted,
    StudyStaged,
    UnstageStudy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "abcdefghijklmnopqrstuvwxyz"
NOON = "2026-01-01T12:00:00.250000Z"
STAGED: dict[str, Any] = {
    "study_key": KEY,
    "series_key": KEY,
    "entry": f"{KEY}-0123456789abcdef",
    "node": "gpu-01",
    "mode": "numpy",
    "size_bytes": 1,
    "stacks": 1,
    "modality": "CT",
    "pinned": False,
    "staged_at": NOON,
}
EVICTED: dict[str, Any] = {
    **{name: STAGED[name] for name in ("study_key", "series_key", "entry", "node")},
    "reason": "space",
    "evicted_at": NOON,
}
STAGE: dict[str, Any] = {
    "study_key": KEY,
    "priority": "stat",
    "pin": "hard",
    "requested_by": "ris-east",
    "requested_at": NOON,
}
UNSTAGE: dict[str, Any] = {"study_key": KEY, "requested_by": "ris-east", "requested_at": NOON}

LEAST = [(StudyStaged, STAGED), (StudyEvicted, EVICTED), (StageStudy, STAGE), (UnstageStudy, UNSTAGE)]


@pytest.mark.parametrize(("model", "least"), LEAST)
def test_what_may_be_left_out_survives_the_wire(
    model: type[Event], least: dict[str, Any], cloud_event: Callable[..., CloudEvent]
) -> None:
    """A record has no nulls: an optional field without a default could be written and never read."""
    event = cloud_event(model.model_validate(least))

    headers, body = codec.encode(event)
    read = codec.decode(headers, body)

    assert least == json.loads(body)
    assert event.data == read.data
    assert KEY == read.subject


@pytest.mark.parametrize(("model", "least"), LEAST)
def test_nothing_else_may_be_left_out(model: type[Event], least: dict[str, Any]) -> None:
    for name in least:
        with pytest.raises(ValidationError):
            model.model_validate({key: value for key, value in least.items() if key != name})


@pytest.mark.parametrize(
    ("model", "least", "change"),
    [
        (StudyStaged, STAGED, {"entry": KEY}),
        (StudyStaged, STAGED, {"entry": f"{KEY}-0123456789ABCDEF"}),
        (StudyStaged, STAGED, {"entry": f"1.2.840.10008-{'0' * 16}"}),
        (StudyStaged, STAGED, {"node": "gpu 01"}),
        (StudyStaged, STAGED, {"node": ""}),
        (StudyStaged, STAGED, {"version": 0}),
        (StudyStaged, STAGED, {"modality": "ct^head"}),
        (StudyStaged, STAGED, {"received_at": "2026-01-01T12:00:00"}),
        (StudyEvicted, EVICTED, {"entry": f"{KEY}-0"}),
        (StudyEvicted, EVICTED, {"reason": "full"}),
        (StageStudy, STAGE, {"series_key": ""}),
        (StageStudy, STAGE, {"priority": "now"}),
        (StageStudy, STAGE, {"requested_by": "DOE^JANE"}),
        (UnstageStudy, UNSTAGE, {"requested_by": "DOE^JANE"}),
    ],
)
def test_what_has_no_place_is_refused(
    model: type[Event], least: dict[str, Any], change: dict[str, Any]
) -> None:
    model.model_validate(least)

    with pytest.raises(ValidationError):
        model.model_validate({**least, **change})


def test_a_series_without_a_modality_has_an_empty_one() -> None:
    assert "" == StudyStaged.model_validate({**STAGED, "modality": ""}).modality


@pytest.mark.parametrize(
    ("model", "least", "field", "unknown"),
    [
        (StudyStaged, STAGED, "mode", StagingMode.UNKNOWN),
        (StudyEvicted, EVICTED, "reason", EvictionReason.UNKNOWN),
        (StageStudy, STAGE, "priority", StagePriority.UNKNOWN),
        (StageStudy, STAGE, "pin", PinKind.UNKNOWN),
    ],
)
def test_a_code_of_a_later_release_is_read_as_unknown(
    model: type[Event],
    least: dict[str, Any],
    field: str,
    unknown: object,
    cloud_event: Callable[..., CloudEvent],
) -> None:
    headers, _ = codec.encode(cloud_event(model.model_validate(least)))

    read = codec.decode(headers, json.dumps({**least, field: "of-2031"}).encode())

    assert unknown == getattr(read.data, field)


def test_a_code_that_is_no_text_is_no_event(cloud_event: Callable[..., CloudEvent]) -> None:
    headers, _ = codec.encode(cloud_event(StageStudy.model_validate(STAGE)))

    with pytest.raises(InvalidEvent):
        codec.decode(headers, json.dumps({**STAGE, "pin": 3}).encode())
