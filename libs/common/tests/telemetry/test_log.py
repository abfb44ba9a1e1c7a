"""Log lines: correlated, allow-listed, one line each, and without patient data."""

import io
import json
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from isocenter.common.clock import ManualClock
from isocenter.common.errors import InvalidEvent
from isocenter.common.telemetry.log import LibraryHandler, Log, LogFormat, LogLevel
from isocenter.common.telemetry.names import LogEvent

CANARY = "DOE^JANE"
UID = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_who_what_and_the_fields_given() -> None:
    stream, clock = io.StringIO(), ManualClock()
    log = Log("indexer", stream=stream, clock=clock)

    log.info(LogEvent.STUDY_SETTLED, study_key="abc", version=2, seconds=0.5, aborted=False)

    assert [
        {
            "time": "2026-01-01T00:00:00.000000Z",
            "level": "info",
            "service": "indexer",
            "event": "study.settled",
            "study_key": "abc",
            "version": 2,
            "seconds": 0.5,
            "aborted": False,
        }
    ] == lines(stream)


def test_a_line_within_a_span_carries_its_ids(recorded: Callable[..., Any]) -> None:
    out = recorded()

    with out.telemetry.tracer.start_as_current_span("store"):
        out.telemetry.log.info(LogEvent.INSTANCE_STORED)
    out.telemetry.log.info(LogEvent.INSTANCE_STORED)

    context = out.spans["store"].get_span_context()
    inside, outside = out.lines
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (inside["trace_id"], inside["span_id"])
    assert "trace_id" not in outside


def test_all_settings_of_a_service_have_room() -> None:
    stream = io.StringIO()
    settings = " ".join(f"ISOCENTER_DEMO_SETTING_{number}=value" for number in range(100))

    Log("demo", stream=stream).info(LogEvent.SETTINGS_LOADED, settings=settings, detail=settings)

    (line,) = lines(stream)
    assert (settings, 512) == (line["settings"], len(line["detail"]))


def test_an_unlisted_field_is_a_type_error_in_tests() -> None:
    fields = cast("dict[str, Any]", {"patient_name": CANARY})

    with pytest.raises(TypeError, match="patient_name") as caught:
        Log("test", stream=io.StringIO(), strict=True).info(LogEvent.SERVICE_STARTED, **fields)

    assert CANARY not in str(caught.value)


def test_an_unlisted_field_is_left_out_and_counted_in_production() -> None:
    stream = io.StringIO()
    fields = cast("dict[str, Any]", {"patient_name": CANARY, "count": 1})

    Log("test", stream=stream).info(LogEvent.SERVICE_STARTED, **fields)

    assert CANARY not in stream.getvalue()
    assert 1 == lines(stream)[0]["fields_left_out"]
    assert 1 == lines(stream)[0]["count"]


def test_of_an_error_only_the_type_is_told() -> None:
    stream = io.StringIO()
    log = Log("test", stream=stream)

    log.error(LogEvent.TASK_FAILED, error=ValueError(CANARY))
    log.error(LogEvent.TASK_FAILED, error=KeyError)

    assert ["ValueError", "KeyError"] == [line["error"] for line in lines(stream)]


def test_our_own_errors_keep_their_text_because_it_holds_no_values() -> None:
    stream = io.StringIO()

    Log("test", stream=stream).error(
        LogEvent.TASK_FAILED, error=InvalidEvent("time: missing", topic="imaging.study.v1")
    )

    assert "InvalidEvent: time: missing [topic=imaging.study.v1]" == lines(stream)[0]["error"]


@pytest.mark.parametrize("style", list(LogFormat))
def test_a_value_cannot_forge_a_second_line(style: LogFormat) -> None:
    stream = io.StringIO()

    Log("test", stream=stream, style=style).info(
        LogEvent.ASSOCIATION_ACCEPTED, sender='AE\n{"event":"forged"}\r\x1b[31m\u2028'
    )

    assert 1 == len(stream.getvalue().splitlines())
    assert "\x1b" not in stream.getvalue()


def test_a_patients_uid_is_replaced_and_a_standard_one_is_kept() -> None:
    stream = io.StringIO()

    Log("test", stream=stream).info(
        LogEvent.NOT_READY, detail=f"at /studies/{UID}/x for 1.2.840.10008.1.2.1 on 127.0.0.1:104, v2.10.3.1"
    )

    assert (
        "at /studies/{uid}/x for 1.2.840.10008.1.2.1 on 127.0.0.1:104, v2.10.3.1"
        == lines(stream)[0]["detail"]
    )


def test_a_very_long_value_is_cut() -> None:
    stream = io.StringIO()

    Log("test", stream=stream).info(LogEvent.NOT_READY, detail="x" * 100_000)

    assert 512 == len(lines(stream)[0]["detail"])


def test_levels_below_the_setting_are_not_written() -> None:
    stream = io.StringIO()
    log = Log("test", stream=stream, level=LogLevel.WARNING)

    log.debug(LogEvent.SERVICE_STARTED)
    log.info(LogEvent.SERVICE_STARTED)
    log.warning(LogEvent.NOT_READY)

    assert ["warning"] == [line["level"] for line in lines(stream)]


def test_people_get_one_readable_line() -> None:
    stream = io.StringIO()

    Log("ingest", stream=stream, style=LogFormat.HUMAN, clock=ManualClock()).info(
        LogEvent.LISTENING, port=11112
    )

    assert "2026-01-01T00:00:00.000 info    ingest   server.listening port=11112\n" == stream.getvalue()


def test_a_broken_stream_does_not_stop_the_platform() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    Log("test", stream=Full()).info(LogEvent.SERVICE_STARTED)
    closed = io.StringIO()
    closed.close()
    Log("test", stream=closed).info(LogEvent.SERVICE_STARTED)


def test_without_a_stream_of_its_own_it_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Log("test").info(LogEvent.SERVICE_STARTED)

    captured = capsys.readouterr()
    assert "" == captured.out
    assert '"event":"service.started"' in captured.err


def test_what_libraries_log_loses_its_values() -> None:
    stream = io.StringIO()
    logger = logging.Logger("some.library")  # noqa: LOG001 - one that no other test can see
    logger.addHandler(LibraryHandler(Log("platform", stream=stream)))

    logger.info("not a warning")
    logger.warning("cannot decode %s", CANARY)
    logger.warning(f"cannot decode {CANARY}")  # noqa: G004 - what libraries do
    try:
        int(CANARY)
    except ValueError:
        logger.exception("failed for %r", UID)

    templated, formatted, failed = lines(stream)
    assert CANARY not in stream.getvalue()
    assert UID not in stream.getvalue()
    assert "cannot decode %s" == templated["template"]
    assert "template" not in formatted
    assert ("error", "ValueError") == (failed["level"], failed["error"])
    assert {"some.library"} == {line["library"] for line in lines(stream)}
    assert all("telemetry/test_log.py:" in line["where"] for line in lines(stream))


def test_every_log_event_says_what_it_means() -> None:
    assert all(event.meaning.endswith((".", "?")) for event in LogEvent)
    assert len(LogEvent) == len({event.value for event in LogEvent})
