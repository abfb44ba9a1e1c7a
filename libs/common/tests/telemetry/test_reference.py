from pathlib import Path

import pytest

from isocenter.common.telemetry.names import Counter, Gauge, Histogram, LogEvent
from isocenter.common.telemetry.reference import BEGIN, END, render, replace

RUNBOOK = Path(__file__).parents[4] / "docs" / "runbook.md"


def test_the_runbook_lists_every_name_as_the_code_has_it() -> None:
    """Made anew by: python -m isocenter.common.telemetry.reference docs/runbook.md."""
    page = RUNBOOK.read_text(encoding="utf-8")

    assert page == replace(page)


def test_every_log_event_is_a_row() -> None:
    table = render()

    assert all(f"| `{event.value}` |" in table for event in LogEvent)


def test_every_name_is_used() -> None:
    """A log event or metric that nothing writes would send an operator looking for it."""
    root = RUNBOOK.parents[1]
    sources = [
        *root.glob("libs/*/src/**/*.py"),
        *root.glob("services/*/src/**/*.py"),
        *root.glob("src/**/*.py"),
    ]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    unused = [
        f"{kind.__name__}.{member.name}"
        for kind in (LogEvent, Counter, Histogram, Gauge)
        for member in kind
        if f"{kind.__name__}.{member.name}" not in text
    ]

    assert [] == unused


def test_only_the_part_between_the_markers_changes() -> None:
    page = replace(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "\nold\n" not in page


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        replace("no markers here")
