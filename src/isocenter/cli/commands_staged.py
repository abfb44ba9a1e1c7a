"""`isocenter staged`."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, size_text, stdout
from isocenter.cli.stager import Socket, connected


def register(app: typer.Typer) -> None:
    app.command(epilog=examples("isocenter staged", "isocenter staged --json | jq .hits"))(staged)


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
