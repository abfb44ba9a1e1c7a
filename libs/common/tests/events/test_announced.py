"""What other systems may announce: bounded, without credentials, and read with the usual tolerance."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from isocenter.common.errors import InvalidEvent
from isocenter.common.events import codec, generate
from isocenter.common.events.models import (
    MAX_ANNOUNCEMENT_BYTES,
    CloudEvent,
    LocationKind,
    StudyAnnounced,
)

Build = Callable[..., CloudEvent]
UID = "1.2.826.0.1.3680043.10.54321.1"
SECRET = "hunter2"  # noqa: S105 - what must not fit

REFUSED_REFS = [
    f"https://user:{SECRET}@pacs.example/dicom-web",
    f"https://{SECRET}@pacs.example/dicom-web",
    f"https://pacs.example/dicom-web?token={SECRET}",
    f"https://pacs.example/dicom-web#{SECRET}",
    f"https://pacs.example/dicom-web;key={SECRET}",
    f"https://bucket.s3.example/1?X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    "pacs.example/dicom-web",
    "https://",
    "https://host/DOE^JANE",
    "https://host/a b",
    "s3://" + "b" * 1024,
]


def record(event: CloudEvent, **changes: Any) -> tuple[list[tuple[str, bytes | None]], bytes]:
    """The event on the wire with fields of its data changed; a dotted name reaches inside."""
    headers, body = codec.encode(event)
    data = json.loads(body)
    for path, value in changes.items():
        target, names = data, path.split("__")
        for name in names[:-1]:
            target = target[name]
        target[names[-1]] = value
    return [*headers], json.dumps(data).encode()


def test_an_announcement_survives_the_wire_and_has_no_subject(
    announced: StudyAnnounced, cloud_event: Build
) -> None:
    event = cloud_event(announced)

    headers, body = codec.encode(event)

    assert event == codec.decode(headers, body)
    assert "" == event.subject
    assert not {"ce_subject", "ce_partitionkey"} & dict(headers).keys()
    assert UID.encode() not in b" ".join(value for _, value in headers)


def test_a_subject_of_the_publisher_is_not_taken_over(announced: StudyAnnounced, cloud_event: Build) -> None:
    """A publisher may well put the UID there; the subject goes into spans."""
    headers, body = codec.encode(cloud_event(announced))

    assert "" == codec.decode([*headers, ("ce_subject", UID.encode())], body).subject


@pytest.mark.parametrize("ref", REFUSED_REFS)
def test_there_is_no_place_for_a_credential_in_a_reference(
    ref: str, announced: StudyAnnounced, cloud_event: Build
) -> None:
    with pytest.raises(InvalidEvent, match=r"data\.location\.ref: string_pattern_mismatch") as caught:
        codec.decode(*record(cloud_event(announced), location__ref=ref))

    assert SECRET not in str(caught.value)
    schema = Draft202012Validator(generate.schema(StudyAnnounced))
    assert not schema.is_valid(announced.model_dump(mode="json") | {"location": {"kind": "s3", "ref": ref}})


@pytest.mark.parametrize(
    ("kind", "ref", "fits"),
    [
        ("s3", "s3://bucket/studies/1.2.3/", True),
        ("s3", "https://bucket.example/1", False),
        ("dicomweb", "https://pacs.example:8443/dicom-web", True),
        ("dicomweb", "http://10.0.0.7/dicom-web", True),
        ("dicomweb", "dimse://PACS", False),
        ("dimse", "dimse://PACS_EAST", True),
        ("dimse", "s3://bucket", False),
    ],
)
def test_the_scheme_is_that_of_the_kind(
    kind: str, ref: str, fits: bool, announced: StudyAnnounced, cloud_event: Build
) -> None:
    changed = record(cloud_event(announced), location={"kind": kind, "ref": ref})

    if fits:
        assert isinstance(codec.decode(*changed).data, StudyAnnounced)
    else:
        with pytest.raises(InvalidEvent, match=r"^data\.location: location_kind_mismatch$"):
            codec.decode(*changed)


def test_a_kind_of_a_later_release_reads_as_unknown(announced: StudyAnnounced, cloud_event: Build) -> None:
    changed = record(cloud_event(announced), location={"kind": "ftp", "ref": "ftp://host/x"}, priority=3)

    data = codec.decode(*changed).data

    assert isinstance(data, StudyAnnounced)
    assert LocationKind.UNKNOWN is data.location.kind


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("study_instance_uid", "", "string_pattern_mismatch"),
        ("study_instance_uid", "1.02.3", "string_pattern_mismatch"),
        ("study_instance_uid", "1.2.", "string_pattern_mismatch"),
        ("study_instance_uid", "DOE^JANE", "string_pattern_mismatch"),
        ("study_instance_uid", "1." + "2" * 63, "string_too_long"),
        ("instances", 0, "greater_than_equal"),
        ("instances", "12", "int_type"),
        ("sender", "", "string_pattern_mismatch"),
        ("sender", "Dr. Jane Doe", "string_pattern_mismatch"),
    ],
)
def test_what_does_not_fit_is_named_and_not_quoted(
    field: str, value: object, fault: str, announced: StudyAnnounced, cloud_event: Build
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        codec.decode(*record(cloud_event(announced), **{field: value}))

    assert f"data.{field}: {fault}" == str(caught.value)


@pytest.mark.parametrize("extra", [0, 1])
def test_an_announcement_has_at_most_64_kib(
    extra: int, announced: StudyAnnounced, cloud_event: Build
) -> None:
    headers, body = record(cloud_event(announced), future="")
    padded = body.replace(b'"future": ""', b'"future": "%s"' % (b"x" * (MAX_ANNOUNCEMENT_BYTES - len(body))))
    assert MAX_ANNOUNCEMENT_BYTES == len(padded)

    if not extra:
        assert isinstance(codec.decode(headers, padded).data, StudyAnnounced)
    else:
        with pytest.raises(InvalidEvent, match=r"^data: too large$"):
            codec.decode(headers, padded + b" ")


def test_the_model_itself_refuses_a_mismatch() -> None:
    with pytest.raises(ValidationError):
        StudyAnnounced.model_validate(
            {"study_instance_uid": UID, "location": {"kind": "s3", "ref": "dimse://A"}, "sender": "A"}
        )
