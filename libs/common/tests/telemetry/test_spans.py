"""Recent spans survive in a file that other processes read and that never stops the platform."""

import json
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Link

from isocenter.common.clock import ManualClock, SystemClock
from isocenter.common.errors import NotFound
from isocenter.common.settings import PlatformSettings
from isocenter.common.telemetry import (
    STUDY_KEY,
    SpanStore,
    read_spans,
    setup,
    span_context_of,
    traceparent_of,
)
from isocenter.common.telemetry.setup import SPAN_QUEUE

STUDY = "a" * 26
OTHER = "b" * 26


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SpanStore]:
    store = SpanStore(tmp_path / "spans.sqlite", SystemClock())
    yield store
    store.close()


def spans(*names: str, study: str | None = None) -> list[ReadableSpan]:
    """Finished spans of one trace, each the child of the one before."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    made: list[ReadableSpan] = []

    def nest(rest: tuple[str, ...]) -> None:
        if rest:
            with tracer.start_as_current_span(rest[0]) as span:
                if study and len(rest) == 1:
                    span.set_attribute(STUDY_KEY, study)
                nest(rest[1:])
            assert isinstance(span, ReadableSpan)
            made.append(span)

    nest(names)
    return made


def test_a_study_finds_every_span_of_every_trace_that_touched_it(store: SpanStore) -> None:
    store.add(spans("association", "store", study=STUDY))
    store.add(spans("retrieve", study=STUDY))
    store.add(spans("unrelated", study=OTHER))

    found = store.traces_of(STUDY)

    assert ["association", "store", "retrieve"] == [span.name for span in found]
    association, stored, _ = found
    assert association.span_id == stored.parent_id
    assert None is association.parent_id
    assert {STUDY_KEY: STUDY} == stored.attributes
    assert 0 < stored.start_ns <= stored.end_ns


def test_links_are_kept(store: SpanStore) -> None:
    (first,) = spans("first")
    assert first.context is not None
    context = span_context_of(traceparent_of(first.context))
    assert context is not None
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("later", links=[Link(context)], attributes={STUDY_KEY: STUDY}) as later:
        pass
    assert isinstance(later, ReadableSpan)
    store.add([later])

    (found,) = store.traces_of(STUDY)

    assert ((f"{context.trace_id:032x}", f"{context.span_id:016x}"),) == found.links


def test_another_process_reads_while_this_one_writes(store: SpanStore) -> None:
    store.add(spans("association", "store", study=STUDY))
    script = (
        "import sys, json; from pathlib import Path; from isocenter.common.telemetry import read_spans;"
        "print(json.dumps([s.name for s in read_spans(Path(sys.argv[1]), sys.argv[2])]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(store.path), STUDY], capture_output=True, text=True, check=True
    )

    assert ["association", "store"] == json.loads(done.stdout)
    assert store.add(spans("more", study=STUDY))


def test_spans_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    with closing(SpanStore(path, SystemClock())) as store:
        store.add(spans("association", study=STUDY))

    assert ["association"] == [span.name for span in read_spans(path, STUDY)]


def test_reading_where_nothing_ran_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_spans(tmp_path / "spans.sqlite", STUDY)
    assert [] == list(tmp_path.iterdir())


def test_reading_what_is_no_span_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "spans.sqlite").write_bytes(b"not a database" * 100)

    with pytest.raises(NotFound):
        read_spans(tmp_path / "spans.sqlite", STUDY)


def test_the_store_is_bounded_by_count(tmp_path: Path) -> None:
    with closing(SpanStore(tmp_path / "s", SystemClock(), max_spans=50)) as store:
        for number in range(60):
            store.add(spans(f"span {number}", study=STUDY))
        store.prune()

        assert [f"span {number}" for number in range(10, 60)] == [
            span.name for span in store.traces_of(STUDY)
        ]


def test_the_bound_is_kept_without_asking(tmp_path: Path) -> None:
    with closing(SpanStore(tmp_path / "s", SystemClock(), max_spans=100)) as store:
        for _ in range(25):
            store.add(spans(*["x"] * 100, study=STUDY))
        with closing(sqlite3.connect(store.path)) as db:
            (count,) = db.execute("SELECT count(*) FROM spans").fetchone()

    assert 100 <= count < 100 + 1_000


def test_the_store_is_bounded_by_age(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    with closing(SpanStore(tmp_path / "s", clock, max_age=timedelta(days=7))) as store:
        store.add(spans("old", study=STUDY))
        store.prune()
        assert ["old"] == [span.name for span in store.traces_of(STUDY)]

        clock.advance(8 * 24 * 3600)
        store.prune()

        assert [] == store.traces_of(STUDY)


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    path.write_bytes(b"not a database" * 1000)

    with closing(SpanStore(path, SystemClock())) as store:
        assert store.restarted
        assert store.add(spans("fresh", study=STUDY))
        assert ["fresh"] == [span.name for span in store.traces_of(STUDY)]


def test_a_store_that_cannot_write_loses_spans_and_raises_nothing(store: SpanStore) -> None:
    store._db.execute("PRAGMA query_only = ON")

    assert SpanExportResult.FAILURE is store.exporter().export(spans("lost", "too"))
    assert 2 == store.lost


def test_exporting_after_the_store_was_closed_raises_nothing(tmp_path: Path) -> None:
    store = SpanStore(tmp_path / "s", SystemClock())
    store.close()

    assert SpanExportResult.FAILURE is store.exporter().export(spans("late"))


def test_the_same_span_twice_is_kept_once(store: SpanStore) -> None:
    batch = spans("once", study=STUDY)
    store.add(batch)
    store.add(batch)

    assert 1 == len(store.traces_of(STUDY))


def test_others_cannot_read_the_file(store: SpanStore) -> None:
    assert 0o600 == stat.S_IMODE(store.path.stat().st_mode)


def test_a_burst_of_a_large_study_loses_no_span(store: SpanStore) -> None:
    """A 3,000-slice study: one association, 3,000 stores and their publishes, faster than any export."""
    telemetry = setup("ingest", PlatformSettings(), store)
    burst = 8_000
    assert burst < SPAN_QUEUE

    with telemetry.tracer.start_as_current_span("association", attributes={STUDY_KEY: STUDY}):
        for _ in range(burst):
            telemetry.tracer.start_span("store").end()
    telemetry.shutdown()

    assert burst + 1 == len(store.traces_of(STUDY))
    assert 0 == store.lost


def test_a_services_spans_carry_its_name(store: SpanStore) -> None:
    services = [setup(name, PlatformSettings(), store) for name in ("ingest", "indexer")]

    first, second = (service.tracer for service in services)
    with first.start_as_current_span("a", attributes={STUDY_KEY: STUDY}), second.start_as_current_span("b"):
        pass
    for service in services:
        service.shutdown()

    assert {("a", "ingest"), ("b", "indexer")} == {(s.name, s.service) for s in store.traces_of(STUDY)}
