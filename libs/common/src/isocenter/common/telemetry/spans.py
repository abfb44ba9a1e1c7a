"""Recent spans kept on this machine, so that `isocenter trace` works without a tracing back end.

One SQLite file in WAL mode: the platform writes, other processes read at the same time. Spans are a
convenience: a full disk or a damaged file loses spans, never work.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from isocenter.common.clock import Clock
from isocenter.common.errors import NotFound
from isocenter.common.telemetry.names import STUDY_KEY

MAX_SPANS = 100_000  # about 60 MB
MAX_AGE = timedelta(days=7)
MAX_SPANS_PER_QUERY = 20_000
PRUNE_EVERY = 1_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
    id INTEGER PRIMARY KEY,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT,
    service TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    study_key TEXT,
    attributes TEXT NOT NULL,
    links TEXT NOT NULL,
    UNIQUE (trace_id, span_id)
);
CREATE INDEX IF NOT EXISTS spans_by_study ON spans (study_key, trace_id) WHERE study_key IS NOT NULL;
"""
_INSERT = "INSERT OR REPLACE INTO spans VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COLUMNS = "trace_id, span_id, parent_id, service, name, kind, status, start_ns, end_ns, attributes, links"


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A finished span. Times are nanoseconds since the Unix epoch; `links` are (trace id, span id)."""

    trace_id: str
    span_id: str
    parent_id: str | None
    service: str
    name: str
    kind: str
    status: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    links: tuple[tuple[str, str], ...]


class SpanStore:
    """Writer and reader in the process of the platform. Thread-safe. See `read_spans` for other processes."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        max_spans: int = MAX_SPANS,
        max_age: timedelta = MAX_AGE,
    ) -> None:
        self.path = path
        self.restarted = False
        """The file could not be used and was begun anew."""
        self.lost = 0
        """Spans that could not be kept since the start."""
        self._clock = clock
        self._max_spans = max_spans
        self._max_age_ns = max_age // timedelta(microseconds=1) * 1000
        self._lock = threading.Lock()
        self._since_prune = 0
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            self.restarted = True
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = _open(path)

    def exporter(self) -> SpanExporter:
        """An exporter for one service's span processor; the store stays open when it is shut down."""
        return _StoreExporter(self)

    def add(self, spans: Sequence[ReadableSpan]) -> bool:
        """Keeps spans; False when the file cannot be written. Blocks: call it from an export thread."""
        rows = [_row(span) for span in spans if span.context is not None]
        with self._lock:
            try:
                with self._db:
                    self._db.executemany(_INSERT, rows)
                    self._since_prune += len(rows)
                    if self._since_prune >= PRUNE_EVERY:
                        self._prune()
            except sqlite3.Error:
                self.lost += len(rows)
                return False
        return True

    def prune(self) -> None:
        with self._lock, self._db:
            self._prune()

    def traces_of(self, study_key: str) -> list[StoredSpan]:
        """Every span of every trace that touched the study, in order of start.

        Bounded by `MAX_SPANS_PER_QUERY`; the newest traces come first into that bound.
        """
        with self._lock:
            return _traces_of(self._db, study_key)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _prune(self) -> None:
        oldest_ns = int(self._clock.now().timestamp() * 1e9) - self._max_age_ns
        self._db.execute(
            "DELETE FROM spans WHERE id <= (SELECT max(id) FROM spans) - ?",
            (self._max_spans,),
        )
        # Rows are written in order of end, nearly: the first young one ends the sweep, so no index on time.
        self._db.execute(
            "DELETE FROM spans WHERE id < coalesce("
            "(SELECT id FROM spans WHERE end_ns >= ? ORDER BY id LIMIT 1),"
            " (SELECT max(id) + 1 FROM spans))",
            (oldest_ns,),
        )
        self._since_prune = 0


def read_spans(path: Path, study_key: str) -> list[StoredSpan]:
    """`SpanStore.traces_of` from another process, while the platform runs or after it has stopped.

    Raises:
        NotFound: there is no span store at `path`, or it cannot be read.
    """
    if not path.exists():
        raise NotFound("no span store here: has the platform run in this data directory?")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return _traces_of(db, study_key)
    except sqlite3.Error:
        raise NotFound("the span store cannot be read") from None


class _StoreExporter(SpanExporter):
    def __init__(self, store: SpanStore) -> None:
        self._store = store

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS if self._store.add(spans) else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        return None

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _open(path: Path) -> sqlite3.Connection:
    # Used from several export threads, one at a time (the store's lock).
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA busy_timeout = 2000")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _row(span: ReadableSpan) -> tuple[Any, ...]:
    context = span.context
    attributes = dict(span.attributes or {})
    return (
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
        trace.format_span_id(span.parent.span_id) if span.parent else None,
        str(span.resource.attributes.get("service.name", "")),
        span.name,
        span.kind.name.lower(),
        span.status.status_code.name.lower(),
        span.start_time or 0,
        span.end_time or 0,
        attributes.get(STUDY_KEY),
        json.dumps(attributes, default=str),
        json.dumps(
            [
                (trace.format_trace_id(link.context.trace_id), trace.format_span_id(link.context.span_id))
                for link in span.links
            ]
        ),
    )


def _traces_of(db: sqlite3.Connection, study_key: str) -> list[StoredSpan]:
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM spans WHERE trace_id IN"  # noqa: S608 - a constant list of columns
        " (SELECT trace_id FROM spans WHERE study_key = ?) ORDER BY id DESC LIMIT ?",
        (study_key, MAX_SPANS_PER_QUERY),
    )
    return sorted(_spans(rows), key=lambda span: (span.start_ns, span.end_ns))


def _spans(rows: Iterable[tuple[Any, ...]]) -> Iterator[StoredSpan]:
    for (
        trace_id,
        span_id,
        parent_id,
        service,
        name,
        kind,
        status,
        start_ns,
        end_ns,
        attributes,
        links,
    ) in rows:
        yield StoredSpan(
            trace_id=trace_id,
            span_id=span_id,
            parent_id=parent_id,
            service=service,
            name=name,
            kind=kind,
            status=status,
            start_ns=start_ns,
            end_ns=end_ns,
            attributes=json.loads(attributes),
            links=tuple((linked_trace, linked_span) for linked_trace, linked_span in json.loads(links)),
        )
