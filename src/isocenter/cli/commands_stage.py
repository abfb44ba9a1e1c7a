"""`isocenter stage`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, size_text, stdout, step_progress
from isocenter.cli.stager import Socket, Target, connected


class Priority(StrEnum):
    STAT = "stat"
    INFERENCE = "inference"
    PRIOR = "prior"
    BULK = "bulk"


class Pin(StrEnum):
    NONE = "none"
    SOFT = "soft"
    HARD = "hard"


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter stage 2.25.3107...                 # every series of a study, by its UID",
            "isocenter stage k7mz.../h2qx... --pin hard   # one series, by keys, until it is unstaged",
            "isocenter stage k7mz... --json | jq '.[].path'",
        )
    )(stage)


def stage(
    target: Target,
    priority: Annotated[Priority, typer.Option(help="What is staged first.")] = Priority.INFERENCE,
    pin: Annotated[Pin, typer.Option(help="Whether it may go for space.")] = Pin.NONE,
    force: Annotated[bool, typer.Option("--force", help="Even if it takes most of the cache.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    socket: Socket = None,
    json: Json = False,
) -> None:
    """Bring a settled study to this node's disk as aligned volumes, and say when it is ready.

    A program then opens it with isocenter.gpu_stager.client; `isocenter view` shows it.
    """
    with connected(data_dir, socket) as stager, step_progress(quiet=json) as progress:
        progress.add_task("fetching, decoding, writing", total=None)
        done = stager.stage(target, priority=priority.value, pin=pin.value, forced=force)
        mode = stager.verdict.mode.value
    if json:
        emit_json(list(done))
        return
    table = Table("series", "mod", "size", "", "seconds", "where")
    for one in done:
        how = "was here" if one["hit"] else "staged"
        seconds = f"{one['seconds']:.2f}"
        table.add_row(one["series_key"], one["modality"], size_text(one["bytes"]), how, seconds, one["path"])
    stdout().print(table)
    stdout().print(f"loads on this node: {mode}")
