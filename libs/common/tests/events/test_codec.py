"""CloudEvents over Kafka: binary out, both modes in, tolerant, and silent about values."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from isocenter.common.errors import InvalidEvent, UnknownEventType
from isocenter.common.events import codec
from isocenter.common.events.models import CloudEvent, InstancesStored, Protocol, StudySettled

Build = Callable[..., CloudEvent]
CANARY = "DOE^JANE"


def binary(event: CloudEvent, **changes: str | bytes | None) -> tuple[list[tuple[str, bytes | None]], bytes]:
    """A record of the event with attributes changed; None takes one away."""
    headers, body = codec.encode(event)
    named: dict[str, bytes | None] = dict(headers)
    for name, value in changes.items():
        named[f"ce_{name}"] = value.encode() if isinstance(value, str) else value
    return [(name, value) for name, value in named.items() if value is not None], body


def structured(event: CloudEvent, **changes: object) -> tuple[list[tuple[str, bytes | None]], bytes]:
    headers, body = codec.encode(event)
    envelope: dict[str, object] = {
        name.removeprefix("ce_"): value.decode() for name, value in headers if name.startswith("ce_")
    }
    envelope |= {"datacontenttype": "application/json", "data": json.loads(body)} | changes
    kept = {name: value for name, value in envelope.items() if value is not ...}
    return [("content-type", b"application/cloudevents+json; charset=utf-8")], json.dumps(kept).encode()


def test_binary_mode_carries_every_attribute_in_a_lower_case_header(
    settled: StudySettled, cloud_event: Build
) -> None:
    event = cloud_event(settled, sequence=3, correlation_id="flow", causation_id="cause")

    headers, body = codec.encode(event, traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")

    assert {
        "ce_specversion": b"1.0",
        "ce_id": b"event-1",
        "ce_source": b"/isocenter/test",
        "ce_type": b"org.isocenter.imaging.study.settled.v1",
        "ce_subject": settled.study_key.encode(),
        "ce_time": b"2026-01-01T12:00:00.250000Z",
        "ce_dataschema": b"urn:isocenter:schema:org.isocenter.imaging.study.settled:1.0",
        "ce_partitionkey": settled.study_key.encode(),
        "ce_sequence": b"00000000000000000003",
        "ce_correlationid": b"flow",
        "ce_causationid": b"cause",
        "content-type": b"application/json",
        "traceparent": b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
    } == dict(headers)
    assert json.loads(body)["settled_at"] == "2026-01-01T12:00:00.250000Z"


def test_absent_optional_attributes_have_no_header(settled: StudySettled, cloud_event: Build) -> None:
    names = {name for name, _ in codec.encode(cloud_event(settled))[0]}

    assert not names & {"ce_sequence", "ce_correlationid", "ce_causationid", "traceparent"}


@pytest.mark.parametrize("mode", [binary, structured])
def test_what_was_encoded_is_what_is_decoded(
    mode: Callable[[CloudEvent], tuple[list[tuple[str, bytes | None]], bytes]],
    settled: StudySettled,
    stored: InstancesStored,
    cloud_event: Build,
) -> None:
    for data in (settled, stored):
        event = cloud_event(data, sequence=7, correlation_id="c", causation_id="d")

        assert event == codec.decode(*mode(event))


def test_encoding_the_same_event_twice_gives_the_same_bytes(
    stored: InstancesStored, cloud_event: Build
) -> None:
    assert codec.encode(cloud_event(stored)) == codec.encode(cloud_event(stored))


def test_sequences_compare_as_strings_like_the_numbers(settled: StudySettled, cloud_event: Build) -> None:
    nine, ten = (dict(codec.encode(cloud_event(settled, sequence=n))[0])["ce_sequence"] for n in (9, 10))

    assert nine < ten


def test_times_are_utc_on_the_wire_whatever_zone_they_came_in(
    settled: StudySettled, cloud_event: Build
) -> None:
    berlin = datetime(2026, 7, 1, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    data = StudySettled.model_validate(settled.model_dump() | {"settled_at": berlin})

    headers, body = codec.encode(cloud_event(data, time=berlin))

    assert b"2026-07-01T12:00:00.000000Z" == dict(headers)["ce_time"]
    assert "2026-07-01T12:00:00Z" == json.loads(body)["settled_at"]


def test_a_time_without_zone_is_refused_at_the_producer(settled: StudySettled, cloud_event: Build) -> None:
    with pytest.raises(InvalidEvent, match="time: no time zone"):
        codec.encode(cloud_event(settled, time=datetime(2026, 1, 1)))  # noqa: DTZ001 - the fault under test


@pytest.mark.parametrize("bad", ["", "line\nbreak", "nul\0", "x" * 1025])
def test_attributes_that_cloudevents_forbids_are_refused_at_the_producer(
    bad: str, settled: StudySettled, cloud_event: Build
) -> None:
    with pytest.raises(InvalidEvent, match="correlationid"):
        codec.encode(cloud_event(settled, correlation_id=bad))


def test_unknown_attributes_and_fields_are_ignored(settled: StudySettled, cloud_event: Build) -> None:
    event = cloud_event(settled)
    headers, body = binary(event, tomorrow="x", unreadable=b"\xff\xfe")
    richer = json.dumps(json.loads(body) | {"from_the_future": {"a": [1]}}).encode()

    assert event == codec.decode([*headers, ("x-proxy", b"\xff")], richer)


def test_null_headers_count_as_absent(settled: StudySettled, cloud_event: Build) -> None:
    headers, body = binary(cloud_event(settled))

    assert None is codec.decode([*headers, ("ce_correlationid", None)], body).correlation_id


def test_an_unknown_code_reads_as_unknown(stored: InstancesStored, cloud_event: Build) -> None:
    headers, body = codec.encode(cloud_event(stored))

    decoded = codec.decode(headers, body.replace(b'"dimse"', b'"carrier-pigeon"')).data

    assert isinstance(decoded, InstancesStored)
    assert Protocol.UNKNOWN is decoded.protocol


def test_a_producer_cannot_invent_a_code(settled: StudySettled) -> None:
    with pytest.raises(ValidationError):
        StudySettled.model_validate(settled.model_dump() | {"reason": "because"})


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "time"])
@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_missing_attribute_is_named(
    name: str, mode: str, settled: StudySettled, cloud_event: Build
) -> None:
    event = cloud_event(settled)
    record = binary(event, **{name: None}) if mode == "binary" else structured(event, **{name: ...})

    with pytest.raises(InvalidEvent, match=f"^{name}: missing$"):
        codec.decode(*record)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("specversion", "0.3", "specversion: unsupported"),
        ("id", "", "id: empty"),
        ("id", CANARY + "\n", "id: control character"),
        ("source", CANARY * 200, "source: too long"),
        ("time", CANARY, "time: not RFC 3339"),
        ("time", "1767268800", "time: not RFC 3339"),
        ("time", "2026-01-01 12:00:00Z", "time: not RFC 3339"),
        ("time", "2026-02-30T12:00:00Z", "time: not RFC 3339"),
        ("time", "0001-01-01T00:00:00+14:00", "time: not RFC 3339"),
        ("sequence", CANARY, "sequence: not a number"),
        ("sequence", "-1", "sequence: not a number"),
        ("sequence", "\u0663", "sequence: not a number"),
    ],
)
@pytest.mark.parametrize("mode", [binary, structured])
def test_a_bad_attribute_is_named_and_not_quoted(
    mode: Callable[..., tuple[list[tuple[str, bytes | None]], bytes]],
    name: str,
    value: str,
    fault: str,
    settled: StudySettled,
    cloud_event: Build,
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        codec.decode(*mode(cloud_event(settled), **{name: value}))

    assert fault == str(caught.value)


def test_an_attribute_that_is_not_utf8_is_named(settled: StudySettled, cloud_event: Build) -> None:
    with pytest.raises(InvalidEvent, match=r"^id: not UTF-8$"):
        codec.decode(*binary(cloud_event(settled), id=b"\xff"))


def test_a_type_without_model_is_told_apart_from_a_broken_event(
    settled: StudySettled, cloud_event: Build
) -> None:
    with pytest.raises(UnknownEventType) as caught:
        codec.decode(*binary(cloud_event(settled), type=f"org.example.{CANARY}.v1"))

    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": "3"}, "data.version: int_type"),
        ({"version": 0}, "data.version: greater_than_equal"),
        ({"study_key": CANARY}, "data.study_key: string_pattern_mismatch"),
        ({"modalities": ["CT", CANARY.lower()]}, "data.modalities.1: string_pattern_mismatch"),
        ({"settled_at": "2026-01-01T00:00:00"}, "data.settled_at: timezone_aware"),
        ({"reason": 7}, "data.reason: enum"),
    ],
)
@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_bad_data_are_reported_by_path_and_kind_only(
    mode: str, change: dict[str, object], fault: str, settled: StudySettled, cloud_event: Build
) -> None:
    event = cloud_event(settled)
    headers, body = binary(event)
    data = json.loads(body) | change
    record = (headers, json.dumps(data).encode()) if mode == "binary" else structured(event, data=data)

    with pytest.raises(InvalidEvent) as caught:
        codec.decode(*record)

    assert fault == str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "body", [None, b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"version":NaN}', b"\xef\xbb\xbf{}"]
)
def test_a_body_that_is_no_object_of_ours_is_refused(
    body: bytes | None, settled: StudySettled, cloud_event: Build
) -> None:
    headers, _ = binary(cloud_event(settled))

    with pytest.raises(InvalidEvent):
        codec.decode(headers, body)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (None, "envelope: not JSON"),
        (b"[" * 100_000, "envelope: not JSON"),
        (b'{"a":NaN}', "envelope: not JSON"),
        (b"[1]", "envelope: not an object"),
    ],
)
def test_an_envelope_that_cannot_be_read_is_refused(body: bytes | None, fault: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        codec.decode([("content-type", b"application/cloudevents+json")], body)

    assert fault == str(caught.value)


def test_structured_data_may_come_as_base64(settled: StudySettled, cloud_event: Build) -> None:
    event = cloud_event(settled)
    encoded = base64.b64encode(codec.encode(event)[1]).decode()

    assert event == codec.decode(*structured(event, data=..., data_base64=encoded))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"data_base64": "e30="}, "data: given twice"),
        ({"data": ..., "data_base64": CANARY}, "data_base64: not base64"),
        ({"data": ..., "data_base64": 7}, "data_base64: not base64"),
        ({"data": ...}, "data: missing"),
        ({"datacontenttype": "text/xml"}, "datacontenttype: not JSON"),
        ({"id": 7}, "id: not a string"),
    ],
)
def test_a_bad_envelope_is_refused(
    changes: dict[str, object], fault: str, settled: StudySettled, cloud_event: Build
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        codec.decode(*structured(cloud_event(settled), **changes))

    assert fault == str(caught.value)


@pytest.mark.parametrize(
    ("content_type", "fault"),
    [
        (b"application/cloudevents-batch+json", "content-type: unsupported event format"),
        (b"application/cloudevents+avro", "content-type: unsupported event format"),
        (b"text/plain", "content-type: not JSON"),
    ],
)
def test_other_content_types_are_refused(
    content_type: bytes, fault: str, settled: StudySettled, cloud_event: Build
) -> None:
    headers, body = binary(cloud_event(settled))

    with pytest.raises(InvalidEvent) as caught:
        codec.decode([*headers, ("content-type", content_type)], body)

    assert fault == str(caught.value)


@pytest.mark.parametrize(
    "content_type", [None, b"application/json; charset=utf-8", b"Application/JSON", b"application/vnd.x+json"]
)
def test_json_by_any_name_is_read(
    content_type: bytes | None, settled: StudySettled, cloud_event: Build
) -> None:
    event = cloud_event(settled)
    headers, body = binary(event)
    others = [(name, value) for name, value in headers if name != "content-type"]

    assert event == codec.decode([*others, ("Content-Type", content_type)], body)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ce_id", "ce_type", "ce_time", "content-type", "ce_sequence", "x"]),
            st.none() | st.binary(max_size=40) | st.just(b"1.0") | st.just(b"application/cloudevents+json"),
        )
    ),
    st.none()
    | st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(value).encode()
    ),
)
def test_no_record_raises_anything_but_a_permanent_error(
    headers: list[tuple[str, bytes | None]], body: bytes | None
) -> None:
    specversion: list[tuple[str, bytes | None]] = [
        ("ce_specversion", b"1.0"),
        ("ce_source", b"/x"),
        ("ce_type", b"org.isocenter.imaging.study.settled.v1"),
    ]
    with pytest.raises((InvalidEvent, UnknownEventType)):
        codec.decode([*specversion, *headers], body)


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))])))
def test_every_time_survives_the_wire(moment: datetime) -> None:
    try:
        in_utc = moment.astimezone(UTC)
    except OverflowError:
        return
    assert in_utc == datetime.fromisoformat(codec.format_time(moment))


def test_nanoseconds_of_other_publishers_are_read(settled: StudySettled, cloud_event: Build) -> None:
    record = binary(cloud_event(settled), time="2026-01-01T12:00:00.123456789+01:00")

    assert datetime(2026, 1, 1, 11, 0, 0, 123456, tzinfo=UTC) == codec.decode(*record).time


def test_the_type_of_a_record_can_be_read_without_its_body(settled: StudySettled, cloud_event: Build) -> None:
    headers, _ = binary(cloud_event(settled))

    assert StudySettled.event_type == codec.event_type_of(headers)
    assert None is codec.event_type_of([("ce_type", b"\xff")])
    assert None is codec.event_type_of([("ce_type", None)])
