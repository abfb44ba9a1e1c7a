"""`isocenter trace`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from isocenter.cli import journey, waterfall
from isocenter.cli.commands_studies import first, state_of
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, size_text, stdout
from isocenter.cli.site import find_study
from isocenter.cli.tracestore import TraceStoreUnavailable
from isocenter.common.index.records import StudyRecord
from isocenter.common.telemetry import StoredSpan

MAX_TRACES = 5


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter trace 2.25.3107...                 # a Study Instance UID",
            "isocenter trace k7mz...                      # a study key, as `isocenter studies` shows it",
            "isocenter trace k7mz... --json | jq '.spans[].name'",
        )
    )(trace)


def trace(
    study: Annotated[str, typer.Argument(help="Study Instance UID or study key.")],
    every: Annotated[
        bool, typer.Option("--all", help="Every event and every trace, nothing summed up.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """Follow one study: its events with times, and its traces as a waterfall.

    Works while the platform runs and after. Spans come from the trace store that ISOCENTER_TRACE_STORE_URL
    names; without one, recent spans are kept on this machine for seven days.
    """
    asyncio.run(_trace(data_dir, study, every=every, json=json))


async def _trace(data_dir: Path, study: str, *, every: bool, json: bool) -> None:
    record, steps = await _found(data_dir, study)
    lost: TraceStoreUnavailable | None = None
    spans: list[StoredSpan] = []
    try:
        spans = await journey.spans(data_dir, record)
    except TraceStoreUnavailable as error:
        lost = error  # the events are worth showing all the same
    if json:
        emit_json(as_json(record, steps, spans))
    else:
        show(stdout(), record, steps, spans, every=every)
    if lost is not None:
        raise CommandError(
            f"no spans from the trace store: {lost.message}",
            hint="look at ISOCENTER_TRACE_STORE_URL and at the store",
            code=Exit.UNREACHABLE,
        )


async def read(data_dir: Path, study: str) -> tuple[StudyRecord, list[journey.Step], list[StoredSpan]]:
    """Raises CommandError where there is no such study, TraceStoreUnavailable."""
    record, steps = await _found(data_dir, study)
    return record, steps, await journey.spans(data_dir, record)


async def _found(data_dir: Path, study: str) -> tuple[StudyRecord, list[journey.Step]]:
    record = await find_study(data_dir, study)
    return record, await journey.steps(data_dir, record.study_key)


def as_json(
    record: StudyRecord, steps: Sequence[journey.Step], spans: Sequence[StoredSpan]
) -> dict[str, Any]:
    return {
        "study_instance_uid": record.study_instance_uid,
        "study_key": record.study_key,
        "state": record.state.value,
        "version": record.version,
        "instances": record.instances,
        "events": [step.as_json() for step in steps],
        "traces": [group[0].trace_id for group in waterfall.traces(spans)],
        "spans": [
            {
                "trace_id": span.trace_id,
                "span_id": span.span_id,
                "parent_id": span.parent_id,
                "service": span.service,
                "name": span.name,
                "kind": span.kind,
                "status": span.status,
                "start_ns": span.start_ns,
                "end_ns": span.end_ns,
                "attributes": dict(span.attributes),
                "links": [list(link) for link in span.links],
            }
            for span in spans
        ],
    }


def show(
    out: Console,
    record: StudyRecord,
    steps: Sequence[journey.Step],
    spans: Sequence[StoredSpan],
    *,
    every: bool = False,
) -> None:
    head = Text("Study ", style="bold")
    head.append(record.study_key, style="bold cyan")
    head.append(
        f"  {'/'.join(record.modalities)}  {first(record.attributes, '00081030')}  {record.series} series,"
        f" {record.instances} instances, {size_text(record.size_bytes)}  ",
        style="default",
    )
    head.append(state_of(record), style="green")
    out.print(head)
    out.print()
    out.print(journey.event_table(steps, every=every))
    grouped = waterfall.traces(spans)
    shown = grouped if every else grouped[:MAX_TRACES]
    for group in shown:
        services = sorted({span.service for span in group})
        out.print()
        out.print(waterfall.draw(group, f"Trace {group[0].trace_id}: {', '.join(services)}", out.width))
    if not grouped:
        out.print("\n[dim]No spans are kept of this study any more.[/dim]")
    elif len(grouped) > len(shown):
        out.print(f"\n[dim]{len(grouped) - len(shown)} later traces; --all shows them[/dim]")
