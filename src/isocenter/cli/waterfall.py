"""A trace drawn in the terminal: one line per span, children below their parents, bars on one time axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.table import Table
from rich.text import Text

from isocenter.common.telemetry import StoredSpan

MAX_ALIKE = 3
"""Siblings with the same name beyond this are drawn as one line."""
BAR_WIDTHS = (12, 64)
"""The least and the most characters of a bar; between them it takes what the terminal leaves."""
_NUMBERS = 20
"""Characters of the two columns of numbers, with their gaps."""
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
_PARTS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a span, or several alike under one parent."""

    depth: int
    service: str
    name: str
    count: int
    start_ns: int
    end_ns: int
    busy_ns: int
    """Sum of the durations; equals end - start for one span."""
    failed: bool


def rows(spans: Sequence[StoredSpan]) -> list[Row]:
    """The lines of one trace, in the order they are drawn. A span whose parent is not here is a root."""
    known = {span.span_id for span in spans}
    children: dict[str | None, list[StoredSpan]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)
    return list(_rows(children.get(None, []), children, 0))


def traces(spans: Sequence[StoredSpan]) -> list[list[StoredSpan]]:
    """Spans by trace, earliest trace first."""
    ordered = sorted(spans, key=lambda span: (span.trace_id, span.start_ns))
    grouped = [list(group) for _, group in groupby(ordered, key=lambda span: span.trace_id)]
    return sorted(grouped, key=lambda group: group[0].start_ns)


def draw(spans: Sequence[StoredSpan], title: str, columns: int) -> Table:
    """The waterfall of one trace, for a terminal of so many columns."""
    lines = rows(spans)
    names = [_named(line) for line in lines]
    services_width = max(len(line.service) for line in lines)
    room = columns - services_width - max(map(len, names)) - _NUMBERS
    width = min(max(room, BAR_WIDTHS[0]), BAR_WIDTHS[1])
    start = min(line.start_ns for line in lines)
    total = max(1, max(line.end_ns for line in lines) - start)
    services = sorted({line.service for line in lines})
    colours = {service: _COLOURS[index % len(_COLOURS)] for index, service in enumerate(services)}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    table.add_column("service", no_wrap=True)
    table.add_column("span", no_wrap=True)
    table.add_column("starts", justify="right", no_wrap=True)
    table.add_column("takes", justify="right", no_wrap=True)
    table.add_column(Text(f"0 {'─' * (width - len(ms(total)) - 3)} {ms(total)}"), no_wrap=True)
    for line, name in zip(lines, names, strict=True):
        colour = colours[line.service]
        table.add_row(
            Text(line.service, style=colour),
            Text(name, style="red" if line.failed else ""),
            ms(line.start_ns - start),
            ms(line.busy_ns),
            Text(
                _bar(line.start_ns - start, line.end_ns - start, total, width),
                style=f"{'red' if line.failed else colour} on grey7",
            ),
        )
    return table


def _named(line: Row) -> str:
    return "  " * line.depth + line.name + (f" ({line.count})" if line.count > 1 else "")


def ms(nanoseconds: float) -> str:
    """A duration for people."""
    value = nanoseconds / 1e6
    if value >= 1000:
        return f"{value / 1000:.2f} s" if value < 10_000 else f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _rows(
    siblings: Sequence[StoredSpan], children: dict[str | None, list[StoredSpan]], depth: int
) -> Iterator[Row]:
    kinds: dict[tuple[str, str], list[StoredSpan]] = {}
    for span in sorted(siblings, key=lambda span: span.start_ns):
        kinds.setdefault((span.service, span.name), []).append(span)
    groups: list[list[StoredSpan]] = []
    for alike in kinds.values():
        groups.extend([alike] if len(alike) > MAX_ALIKE else [[span] for span in alike])
    for group in sorted(groups, key=lambda group: group[0].start_ns):
        yield Row(
            depth=depth,
            service=group[0].service,
            name=group[0].name,
            count=len(group),
            start_ns=group[0].start_ns,
            end_ns=max(span.end_ns for span in group),
            busy_ns=sum(span.end_ns - span.start_ns for span in group),
            failed=any(span.status == "error" for span in group),
        )
        below = [child for span in group for child in children.get(span.span_id, [])]
        yield from _rows(below, children, depth + 1)


def _bar(start: int, end: int, total: int, columns: int) -> str:
    """Eighths of a character; never empty, so that the shortest span can be seen."""
    first = start * columns * 8 // total
    last = max(first + 1, end * columns * 8 // total)
    cell = min(first, columns * 8 - 1) // 8
    width = last - first
    if width < 8:
        return (" " * cell + _PARTS[max(1, width)]).ljust(columns)
    full, rest = divmod(last - cell * 8, 8)
    return (" " * cell + "█" * full + (_PARTS[rest] if rest else "")).ljust(columns)[:columns]
