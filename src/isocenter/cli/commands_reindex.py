"""`isocenter reindex`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer
from rich.progress import Progress

from isocenter.cli import state
from isocenter.cli.errors import Exit
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, stderr, stdout, step_progress
from isocenter.cli.site import require
from isocenter.common.runtime import open_platform
from isocenter.common.settings import PlatformSettings
from isocenter.indexer.rebuild import RebuildReport, rebuild


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter reindex                            # with the platform stopped",
            "isocenter reindex --json | jq .unreadable",
        )
    )(reindex)


def reindex(data_dir: DataDir = DEFAULT_DATA_DIR, json: Json = False) -> None:
    """Rebuild the index from the objects alone, equal to the one it replaces.

    Stop the platform first.
    Reads every object's header, never its pixel data. Run it again if it was interrupted: until it has
    finished, the index stays closed to the platform.

    Exits 1 when an object cannot be read; every other object is indexed all the same.
    """
    require(data_dir, "keys")
    with state.hold(data_dir, purpose="reindex"), step_progress(quiet=json) as progress:
        report = asyncio.run(_rebuild(data_dir, progress))
    if json:
        emit_json(as_json(report))
    else:
        _show(report)
    if report.unreadable:
        raise typer.Exit(Exit.REFUSED)


async def _rebuild(data_dir: Path, progress: Progress) -> RebuildReport:
    settings = PlatformSettings.load(data_dir=data_dir, log_level="error")
    async with open_platform(settings) as platform:
        tasks = {
            "instances": progress.add_task("Reading objects", total=None),
            "revisions": progress.add_task("Reading revisions", total=None),
        }
        return await rebuild(
            platform.ports("indexer"), lambda phase, done: progress.update(tasks[phase], completed=done)
        )


def as_json(report: RebuildReport) -> dict[str, object]:
    return {
        "objects": report.objects,
        "instances": report.instances,
        "conflicts": report.conflicts,
        "studies": report.studies,
        "settled": report.settled,
        "to_settle": report.to_settle,
        "unreadable": [
            {"object_key": each.object_key, "error": type(each.error).__name__} for each in report.unreadable
        ],
    }


def _show(report: RebuildReport) -> None:
    stdout().print(
        f"[green]{report.instances} instances[/green] of {report.studies} studies from {report.objects}"
        f" objects; {report.settled} studies settled as before, {report.to_settle} to settle at the next"
        f" start, {report.conflicts} conflicts"
    )
    for each in report.unreadable:
        stderr().print(f"[red]unreadable[/red] {each.object_key}: {type(each.error).__name__}")
