"""One line per log event on stderr: JSON for machines, or one readable line for people.

Fields are allow-listed by name, so that a value of a data set has no way in. `error` takes an exception and
keeps its type; the text only of our own errors, which carry identifiers and never payload.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TextIO, TypedDict, Unpack, cast

from opentelemetry import trace

from isocenter.common.clock import Clock, SystemClock
from isocenter.common.errors import IsocenterError
from isocenter.common.events.codec import format_time
from isocenter.common.telemetry.names import LogEvent
from isocenter.common.telemetry.redact import MAX_CHARS, safe_text


class LogFormat(StrEnum):
    JSON = "json"
    HUMAN = "human"


class LogLevel(IntEnum):
    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


class LogFields(TypedDict, total=False):
    """What a line may carry. Keys are opaque; `path` is a file of the platform, never of a sender."""

    aborted: bool
    attempt: int
    bytes: int
    called_ae_title: str
    check: str
    commitment_id: str
    conflicts: int
    count: int
    detail: str
    duplicates: int
    entry: str
    error: BaseException | type[BaseException] | str
    event_id: str
    event_type: str
    exit_code: int
    group: str
    host: str
    instance_key: str
    instances: int
    library: str
    method: str
    mode: str
    object_key: str
    offset: int
    partition: int
    path: str
    pid: int
    port: int
    protocol: str
    reason: str
    rejected: int
    route: str
    seconds: float
    sender: str
    series: int
    series_key: str
    settings: str
    signal: str
    status: int | str
    study_key: str
    template: str
    topic: str
    transfer_id: str
    url: str
    version: int | str
    where: str


LIMITS = {"settings": 16 * MAX_CHARS}
"""Characters of fields that may have more than others: all settings of a service do not fit."""
FIELD_NAMES = frozenset(LogFields.__annotations__)


class Log:
    """A service's log. With `strict`, an unlisted field raises TypeError; else it is left out and counted."""

    def __init__(
        self,
        service: str,
        *,
        stream: TextIO | None = None,
        style: LogFormat = LogFormat.JSON,
        level: LogLevel = LogLevel.INFO,
        clock: Clock | None = None,
        strict: bool = False,
    ) -> None:
        self.service = service
        self.level = level
        self._stream = stream
        self._style = style
        self._clock = clock or SystemClock()
        self._strict = strict

    def debug(self, event: LogEvent, **fields: Unpack[LogFields]) -> None:
        self.write(LogLevel.DEBUG, event, **fields)

    def info(self, event: LogEvent, **fields: Unpack[LogFields]) -> None:
        self.write(LogLevel.INFO, event, **fields)

    def warning(self, event: LogEvent, **fields: Unpack[LogFields]) -> None:
        self.write(LogLevel.WARNING, event, **fields)

    def error(self, event: LogEvent, **fields: Unpack[LogFields]) -> None:
        self.write(LogLevel.ERROR, event, **fields)

    def write(self, level: LogLevel, event: LogEvent, **fields: Unpack[LogFields]) -> None:
        """Never raises for a broken stream: a full disk under the log must not stop ingest."""
        given = cast("dict[str, object]", fields)
        unknown = given.keys() - FIELD_NAMES
        if unknown and self._strict:
            raise TypeError(f"log fields that are not allow-listed: {', '.join(sorted(unknown))}")
        if level < self.level:
            return
        line: dict[str, object] = {
            "time": format_time(self._clock.now()),
            "level": level.name.lower(),
            "service": self.service,
            "event": event.value,
        }
        line |= {name: _plain(name, value) for name, value in given.items() if name not in unknown}
        if unknown:
            line["fields_left_out"] = len(unknown)
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = trace.format_trace_id(context.trace_id)
            line["span_id"] = trace.format_span_id(context.span_id)
        _emit(self._stream or sys.stderr, _render(line, self._style))


class LibraryHandler(logging.Handler):
    """Takes what libraries log, without values: their messages may quote a record, a URL or a data set."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields = LogFields(
            library=record.name,
            where=f"{'/'.join(Path(record.pathname).parts[-3:])}:{record.lineno}",
        )
        if record.args and isinstance(record.msg, str):
            # With arguments apart, the template is a literal of the library; without, it may be an f-string.
            fields["template"] = record.msg
        if record.exc_info and record.exc_info[0]:
            fields["error"] = record.exc_info[0]
        level = LogLevel.ERROR if record.levelno >= logging.ERROR else LogLevel.WARNING
        self._log.write(level, LogEvent.LIBRARY_MESSAGE, **fields)


_WRITING = threading.Lock()


def _emit(stream: TextIO, line: str) -> None:
    try:
        with _WRITING:
            stream.write(line + "\n")
            stream.flush()
    except (OSError, ValueError):
        return


def _plain(name: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, IsocenterError):
        return safe_text(f"{type(value).__name__}: {value}")
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, type):
        return value.__name__
    return safe_text(str(value), LIMITS.get(name, MAX_CHARS))


def _render(line: dict[str, object], style: LogFormat) -> str:
    if style is LogFormat.JSON:
        return json.dumps(line, separators=(",", ":"))
    rest = (f"{name}={value}" for name, value in line.items() if name not in _HEAD)
    return " ".join(
        (f"{line['time']}"[:23], f"{line['level']:<7}", f"{line['service']:<8}", f"{line['event']}", *rest)
    )


_HEAD = frozenset({"time", "level", "service", "event"})
