"""The operator's reference: every log event and metric with its meaning and next step, as Markdown tables.

`python -m isocenter.common.telemetry.reference docs/runbook.md` rewrites the part between the markers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from isocenter.common.telemetry.names import Counter, Gauge, Histogram, LogEvent

BEGIN = "<!-- generated: log events and metrics -->"
END = "<!-- end of generated part -->"


def render() -> str:
    """The tables, as they stand in the runbook between the markers."""
    events = ([f"`{event.value}`", event.meaning, event.next_step or "-"] for event in LogEvent)
    metrics = (
        [f"`{metric.value}`", metric.unit, metric.meaning, metric.next_step]
        for kind in (Counter, Histogram, Gauge)
        for metric in kind
    )
    return "\n".join(
        (
            BEGIN,
            "",
            "### Log events",
            "",
            *_table(("event", "meaning", "next step"), events),
            "",
            "### Metrics",
            "",
            *_table(("metric", "unit", "meaning", "next step"), metrics),
            "",
            END,
        )
    )


def replace(page: str) -> str:
    """The page with its generated part made anew. Raises ValueError where the markers are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return before + render() + after


def _table(head: tuple[str, ...], rows: Iterable[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return lines


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(replace(target.read_text(encoding="utf-8")), encoding="utf-8")
