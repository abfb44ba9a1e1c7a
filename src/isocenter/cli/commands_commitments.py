"""`isocenter commitments`."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, stdout
from isocenter.cli.site import open_index
from isocenter.common.index.commitments import OPEN, Commitment


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter commitments                        # newest first",
            "isocenter commitments --open                 # whoever has not been told",
            "isocenter commitments --json",
        )
    )(commitments)


def commitments(
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    waiting: Annotated[bool, typer.Option("--open", help="Only those that are not answered.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """List requests for storage commitment: who asked, what was found, and whether it was told.

    The id is that of the log. Shows no UID but that of the transaction.
    """
    found = asyncio.run(_read(data_dir, limit))
    if waiting:
        found = [each for each in found if each.state in OPEN]
    if json:
        emit_json([as_json(each) for each in found])
        return
    if not found:
        stdout().print("No requests for storage commitment.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "requester", "when (UTC)", "inst", "failed", "state", "tries"):
        table.add_column(name, no_wrap=True, justify="right" if name in {"inst", "tries"} else "left")
    for each in found:
        table.add_row(
            each.id,
            Text(requester_of(each)),
            f"{each.requested_at:%Y-%m-%d %H:%M:%S}",
            str(len(each.references)),
            " ".join(f"{reason}:{count}" for reason, count in failures_of(each).items()),
            each.state.value,
            str(each.attempts),
        )
    stdout().print(table)


async def _read(data_dir: Path, limit: int) -> list[Commitment]:
    async with open_index(data_dir) as index:
        return await index.commitments(limit)


def requester_of(commitment: Commitment) -> str:
    """AE title, or `http`. A backslash is in no AE title."""
    return commitment.requester.removeprefix("\\")


def failures_of(commitment: Commitment) -> dict[str, int]:
    """Failure Reason in hexadecimal -> instances."""
    reasons = Counter(f"{reason:04x}" for reason in commitment.failures.values())
    return dict(sorted(reasons.items()))


def as_json(commitment: Commitment) -> dict[str, Any]:
    return {
        "id": commitment.id,
        "requester": requester_of(commitment),
        "transaction_uid": commitment.transaction_uid,
        "requested_at": commitment.requested_at,
        "instances": len(commitment.references),
        "failures": failures_of(commitment),
        "checked_at": commitment.checked_at,
        "state": commitment.state.value,
        "attempts": commitment.attempts,
    }
