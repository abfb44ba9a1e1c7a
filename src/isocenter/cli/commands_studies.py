"""`isocenter studies`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, size_text, stdout
from isocenter.cli.site import open_index
from isocenter.common.index.records import DicomJson, SettleState, StudyRecord

_STUDY_DATE, _DESCRIPTION = "00080020", "00081030"
_COLUMNS = (
    "study key",
    "date",
    "mod",
    "patient id",
    "description",
    "series",
    "inst",
    "size",
    "state",
    "reason",
)


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter studies                            # newest first",
            "isocenter studies --limit 5 --json",
            "isocenter studies --json | jq -r '.[0].study_key'",
        )
    )(studies)


def studies(
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest arrival first.")] = 50,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """List the studies of this site, from its index.

    Works while the platform runs and after.
    Shows identifying data: it is for people who may see the data directory.
    """
    found, total = asyncio.run(_read(data_dir, limit))
    if json:
        emit_json([as_json(study) for study in found])
        return
    out = stdout()
    if not found:
        out.print("No studies yet. Try: isocenter synth-ct ct && isocenter send ct")
        return
    out.print(table(found))
    if total > len(found):
        out.print(f"[dim]{len(found)} of {total}; --limit shows more[/dim]")


async def _read(data_dir: Path, limit: int) -> tuple[list[StudyRecord], int]:
    found: list[StudyRecord] = []
    total = 0
    async with open_index(data_dir) as index:
        async for study in index.studies():
            total += 1
            if total <= limit:
                found.append(study)
    return found, total


def as_json(study: StudyRecord) -> dict[str, Any]:
    return {
        "study_instance_uid": study.study_instance_uid,
        "study_key": study.study_key,
        "patient": {"issuer": study.patient[0], "id": study.patient[1]},
        "accession": {"issuer": study.accession[0], "number": study.accession[1]},
        "study_date": first(study.attributes, _STUDY_DATE),
        "description": first(study.attributes, _DESCRIPTION),
        "modalities": list(study.modalities),
        "series": study.series,
        "instances": study.instances,
        "bytes": study.size_bytes,
        "state": study.state.value,
        "version": study.version,
        "settled_reason": study.settled_reason,
        "settled_at": study.settled_at,
        "conflicts": study.conflicts,
        "first_received_at": study.first_received_at,
        "last_received_at": study.last_received_at,
    }


def table(found: Sequence[StudyRecord]) -> Table:
    """Description and reason give way where the terminal is narrow; keys and counts do not."""
    rows = [
        (
            study.study_key,
            first(study.attributes, _STUDY_DATE),
            "/".join(study.modalities),
            study.patient[1],
            first(study.attributes, _DESCRIPTION),
            str(study.series),
            str(study.instances),
            size_text(study.size_bytes),
            state_of(study),
            study.settled_reason or "",
        )
        for study in found
    ]
    columns = Table(box=None, pad_edge=False, header_style="bold")
    for position, name in enumerate(_COLUMNS):
        width = max([len(name), *(len(row[position]) for row in rows)])
        columns.add_column(
            name,
            no_wrap=True,
            justify="right" if name in {"series", "inst", "size"} else "left",
            min_width=None if name in {"description", "reason"} else min(width, 26),
        )
    for study, row in zip(found, rows, strict=True):
        style = "green" if study.state is SettleState.SETTLED else "yellow"
        columns.add_row(*map(Text, row[:8]), Text(row[8], style=style), Text(row[9], style="dim"))
    return columns


def state_of(study: StudyRecord) -> str:
    """`settled v1, 2 conflicts`, or `receiving` with the version that is out of date."""
    if study.state is SettleState.SETTLED:
        text = f"settled v{study.version}"
    else:
        text = "receiving" + (f", was v{study.version}" if study.version else "")
    return f"{text}, {study.conflicts} conflicts" if study.conflicts else text


def first(attributes: DicomJson, tag: str) -> str:
    """The first value of an attribute as text, empty where there is none."""
    values = attributes.get(tag, {}).get("Value") or [""]
    value = values[0]
    return str(value.get("Alphabetic", "")) if isinstance(value, dict) else str(value)
