from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from isocenter.cli.waterfall import _bar, draw, rows, traces
from isocenter.common.telemetry import StoredSpan


def _span(
    ident: str,
    parent: str | None,
    name: str,
    start: int,
    end: int,
    *,
    trace: str = "t1",
    service: str = "ingest",
    status: str = "unset",
) -> StoredSpan:
    return StoredSpan(trace, ident, parent, service, name, "internal", status, start, end, {}, ())


def test_children_stand_below_their_parents_in_order_of_start() -> None:
    spans = [
        _span("b", "a", "publish", 30, 40),
        _span("a", None, "association", 0, 100),
        _span("c", "a", "store", 10, 20),
        _span("d", "b", "process", 40, 60, service="indexer"),
    ]

    assert [("association", 0), ("store", 1), ("publish", 1), ("process", 2)] == [
        (row.name, row.depth) for row in rows(spans)
    ]


def test_many_alike_are_one_line_that_covers_them_all() -> None:
    spans = [_span("a", None, "association", 0, 1000)]
    spans += [_span(f"s{n}", "a", "store", n * 10, n * 10 + 5) for n in range(20)]
    spans += [_span(f"w{n}", f"s{n}", "write", n * 10, n * 10 + 2) for n in range(20)]

    _, store, write = rows(spans)

    assert (20, 0, 195, 100) == (store.count, store.start_ns, store.end_ns, store.busy_ns)
    assert (20, 2) == (write.count, write.depth)


def test_a_failure_among_many_shows() -> None:
    spans = [
        _span(f"s{n}", None, "store", n, n + 1, status="error" if n == 7 else "unset") for n in range(20)
    ]

    (row,) = rows(spans)

    assert row.failed


def test_a_span_whose_parent_is_gone_is_a_root() -> None:
    (row,) = rows([_span("a", "lost", "store", 0, 1)])

    assert 0 == row.depth


def test_traces_come_in_order_of_time() -> None:
    spans = [_span("a", None, "late", 50, 60, trace="a"), _span("b", None, "early", 0, 5, trace="b")]

    assert [["early"], ["late"]] == [[span.name for span in group] for group in traces(spans)]


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (0, 1), (0, 1000), (999, 1000), (1000, 1000), (500, 501), (10, 400)]
)
def test_a_bar_is_visible_and_fits(start: int, end: int) -> None:
    bar = _bar(start, end, 1000, 48)

    assert len(bar) == 48
    assert bar.strip()


def test_drawn_without_a_terminal_it_keeps_every_name() -> None:
    out = StringIO()

    Console(file=out, width=140).print(draw([_span("a", None, "association", 0, 5_000_000)], "Trace", 140))

    assert "association" in out.getvalue()
    assert "5.0 ms" in out.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 110, 200])
def test_the_drawing_fits_the_terminal(columns: int) -> None:
    out = StringIO()
    spans = [
        _span("a", None, "association", 0, 900_000_000),
        _span("b", "a", "store", 850_000_000, 900_000_000),
    ]

    Console(file=out, width=columns).print(draw(spans, "Trace", columns))

    assert max(map(len, out.getvalue().splitlines())) <= columns
    assert "…" not in out.getvalue()
