"""`isocenter stage`, `isocenter staged` and `isocenter unstage`: series on this node's fast disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, size_text, stdout, step_progress
from isocenter.gpu_stager.agent.protocol import AgentError
from isocenter.gpu_stager.client import Stager, StagerUnavailable

Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        envvar="ISOCENTER_GPU_STAGER_SOCKET",
        help="The stager's socket, where it is not the data directory's.",
    ),
]
Target = Annotated[str, typer.Argument(help="STUDY or STUDY/SERIES: UIDs, or keys.", metavar="STUDY")]


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
    app.command(epilog=examples("isocenter staged", "isocenter staged --json | jq .hits"))(staged)
    app.command(epilog=examples("isocenter unstage k7mz...", "isocenter unstage '*'"))(unstage)


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


def staged(data_dir: DataDir = DEFAULT_DATA_DIR, socket: Socket = None, json: Json = False) -> None:
    """What is on this node: bytes, leases, pins, hits, and how loads carry the bytes."""
    with connected(data_dir, socket) as stager:
        status = stager.status()
    if json:
        emit_json({name: value for name, value in status.items() if name != "verdict"})
        return
    out = stdout()
    if status["entries"]:
        out.print(_table(status["entries"]))
    else:
        out.print("Nothing is staged. Try: isocenter stage STUDY")
    asked = status["hits"] + status["misses"]
    rate = f"{100 * status['hits'] / asked:.0f} %" if asked else "-"
    used = f"{size_text(status['charged_bytes'])} of {size_text(status['quota_bytes'])}"
    out.print(f"{used}; hits {rate}; loads: {status['mode']}; node {status['node']}")
    for fault in status["broken_disks"]:
        out.print(f"[red]a disk is left out: {fault}[/red]")


def unstage(
    target: Annotated[str, typer.Argument(help="STUDY, STUDY/SERIES, or * for all.", metavar="STUDY")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    socket: Socket = None,
    json: Json = False,
) -> None:
    """Remove staged copies from this node. The study itself is as safe as before; what is in use stays."""
    with connected(data_dir, socket) as stager:
        gone = stager.evict(target)
    if json:
        emit_json(gone)
        return
    stdout().print(f"{len(gone)} staged series removed from this node")


@contextlib.contextmanager
def connected(data_dir: Path, socket: Path | None) -> Iterator[Stager]:
    """Raises CommandError: no stager answers, or it refuses."""
    try:
        with Stager(socket, data_dir=data_dir) as stager:
            yield stager
    except StagerUnavailable as error:
        raise CommandError(
            error.message, hint="isocenter up, or --socket of the node's stager", code=Exit.UNREACHABLE
        ) from None
    except AgentError as error:
        code = Exit.NOT_FOUND if error.code == "not-found" else Exit.REFUSED
        raise CommandError(str(error), hint=_HINTS.get(str(error.code), ""), code=code) from None


_HINTS = {
    "not-found": "isocenter studies; a study is staged once it has settled",
    "too-large": "--force, or a larger ISOCENTER_GPU_STAGER_QUOTA_BYTES",
    "overloaded": "isocenter staged shows who holds the space",
    "cache-full": "isocenter staged shows who holds the space",
}


def _table(entries: list[dict[str, Any]]) -> Table:
    table = Table("study", "series", "mod", "state", "size", "leases", "pin", "hits", "idle")
    for one in entries:
        table.add_row(
            one["study_key"],
            one["series_key"],
            one["modality"],
            one["state"],
            size_text(one["bytes"]),
            str(one["leases"]),
            one["pin"],
            str(one["hits"]),
            f"{one['idle_seconds']:.0f} s",
        )
    return table
