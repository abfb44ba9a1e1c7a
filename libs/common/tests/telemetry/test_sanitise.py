"""No exporter sees a span that did not pass the gate."""

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from isocenter.common.errors import IsocenterError, Permanent
from isocenter.common.telemetry.names import STUDY_KEY

CANARY = "DOE^JANE"
UID = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"

Recorded = Callable[..., Any]


def exported(out: Any) -> str:
    return "".join(span.to_json() for span in out.exporter.get_finished_spans())


def test_a_librarys_exception_keeps_its_type_only(recorded: Recorded) -> None:
    out = recorded()

    with pytest.raises(ValueError), out.telemetry.tracer.start_as_current_span("work"):
        raise ValueError(f"bad value {CANARY}")

    span = out.spans["work"]
    assert CANARY not in exported(out)
    assert {"exception.type": "ValueError", "exception.escaped": "False"} == dict(span.events[0].attributes)
    assert (StatusCode.ERROR, "ValueError") == (span.status.status_code, span.status.description)


def test_our_own_exceptions_keep_their_text(recorded: Recorded) -> None:
    out = recorded()

    with pytest.raises(Permanent), out.telemetry.tracer.start_as_current_span("work"):
        raise Permanent("refused", topic="imaging.study.v1")

    span = out.spans["work"]
    assert "refused [topic=imaging.study.v1]" == span.events[0].attributes["exception.message"]
    assert "Permanent: refused [topic=imaging.study.v1]" == span.status.description


def test_our_own_exceptions_do_not_carry_a_librarys_text_along(recorded: Recorded) -> None:
    """A stack trace repeats the texts of the whole chain."""
    out = recorded()

    with pytest.raises(Permanent), out.telemetry.tracer.start_as_current_span("work"):
        raise Permanent("refused") from ValueError(CANARY)

    assert CANARY not in exported(out)


def test_a_subclass_made_in_a_service_is_one_of_ours(recorded: Recorded) -> None:
    class LocalError(Permanent):
        pass

    out = recorded()
    with pytest.raises(IsocenterError), out.telemetry.tracer.start_as_current_span("work"):
        raise LocalError("known")

    assert "known" == out.spans["work"].events[0].attributes["exception.message"]


def test_a_description_set_by_somebody_else_is_dropped(recorded: Recorded) -> None:
    out = recorded()
    tracer = out.telemetry.tracer
    with tracer.start_as_current_span("plain") as span:
        span.set_status(Status(StatusCode.ERROR, CANARY))
    with tracer.start_as_current_span("after ours") as span:
        span.record_exception(Permanent("fine"))
        span.set_status(Status(StatusCode.ERROR, CANARY))
    with tracer.start_as_current_span("ours, then theirs") as span:
        span.record_exception(Permanent("fine"))
        span.record_exception(ValueError(CANARY))
        span.set_status(Status(StatusCode.ERROR, f"ValueError: {CANARY}"))

    assert CANARY not in exported(out)
    assert None is out.spans["plain"].status.description
    assert "ValueError" == out.spans["ours, then theirs"].status.description


def test_only_listed_attributes_pass(recorded: Recorded) -> None:
    out = recorded()
    kept = {
        STUDY_KEY: "abc",
        "messaging.destination.name": "imaging.study.v1",
        "messaging.kafka.offset": 7,
        "http.route": "/studies/{study}",
        "error.type": "ValueError",
    }
    dropped = {
        "messaging.kafka.message.key": UID,
        "http.url": f"http://x/studies/{UID}",
        "url.path": f"/studies/{UID}",
        "db.query.text": CANARY,
        "patient.name": CANARY,
    }

    with out.telemetry.tracer.start_as_current_span("work", attributes=kept | dropped):
        pass

    assert kept == dict(out.spans["work"].attributes)


def test_values_of_listed_attributes_lose_uids_bytes_and_length(recorded: Recorded) -> None:
    out = recorded()
    attributes: dict[str, Any] = {
        "isocenter.a": f"study {UID}",
        "isocenter.b": [UID, "x"],
        "isocenter.c": b"\x00\x01",
        "isocenter.d": "x" * 10_000,
        "isocenter.e": True,
        "isocenter.f": "1.2.840.10008.1.2.1",
    }

    with out.telemetry.tracer.start_as_current_span("work", attributes=attributes):
        pass

    found = out.spans["work"].attributes
    assert "study {uid}" == found["isocenter.a"]
    assert ["{uid}", "x"] == list(found["isocenter.b"])
    assert 2 == found["isocenter.c"]
    assert 512 == len(found["isocenter.d"])
    assert True is found["isocenter.e"]
    assert "1.2.840.10008.1.2.1" == found["isocenter.f"]


def test_names_events_and_links_are_cleaned_too(recorded: Recorded) -> None:
    out = recorded()
    tracer = out.telemetry.tracer
    with tracer.start_as_current_span("other") as other:
        pass

    link = Link(other.get_span_context(), {"patient": CANARY, "isocenter.role": "study"})
    with tracer.start_as_current_span(f"GET /studies/{UID}", links=[link], kind=SpanKind.SERVER) as span:
        span.add_event(f"read {UID}", {"patient": CANARY, "isocenter.n": 1})

    found = out.spans["GET /studies/{uid}"]
    assert CANARY not in exported(out)
    assert UID not in exported(out)
    assert {"isocenter.role": "study"} == dict(found.links[0].attributes)
    assert other.get_span_context() == found.links[0].context
    assert ("read {uid}", {"isocenter.n": 1}) == (found.events[0].name, dict(found.events[0].attributes))
    assert SpanKind.SERVER is found.kind


def test_the_shape_of_the_trace_is_kept(recorded: Recorded) -> None:
    out = recorded("ingest")
    tracer = out.telemetry.tracer
    with tracer.start_as_current_span("parent"), tracer.start_as_current_span("child"):
        pass

    parent, child = out.spans["parent"], out.spans["child"]
    assert parent.get_span_context().span_id == child.parent.span_id
    assert parent.get_span_context().trace_id == child.get_span_context().trace_id
    assert parent.start_time <= child.start_time <= child.end_time <= parent.end_time
    assert "ingest" == child.resource.attributes["service.name"]
