"""`isocenter reindex`."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path

import typer
from rich.progress import Progress

from isocenter.cli import state
from isocenter.cli.errors import Exit
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, stderr, stdout, step_progress
from isocenter.cli.site import engines_of, require
from isocenter.common.engines import INDEX_FILE, Engines
from isocenter.common.errors import IndexUnavailable, Misconfigured
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.runtime import open_platform
from isocenter.common.settings import PlatformSettings
from isocenter.indexer.rebuild import RebuildReport, rebuild
from isocenter.indexer.settings import IndexerSettings

_DAMAGED = frozenset({"SQLITE_NOTADB", "SQLITE_CORRUPT"})


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter reindex                            # with the platform stopped",
            "isocenter reindex --json | jq .unreadable",
        )
    )(reindex)


def reindex(data_dir: DataDir = DEFAULT_DATA_DIR, json: Json = False) -> None:
    """Rebuild the index from the objects alone, equal to the one it replaces.

    Stop the platform first; in a cluster, every indexer: until the rebuild has finished, none may write.
    Reads every object's header, never its pixel data. Run it again if it was interrupted: until it has
    finished, the index stays closed to the platform.

    Exits 1 when an object cannot be read; every other object is indexed all the same.
    """
    if engines_of(data_dir).platform.site_key_file is None:
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
    engines = Engines.load(settings)
    if engines.mongo.uri is None:
        kept = await set_aside_unusable(data_dir / INDEX_FILE)
        if kept is not None:
            stderr().print(f"[yellow]the index could not be opened[/yellow] and is kept as {kept.name}")
    async with open_platform(settings, engines=engines) as platform:
        tasks = {
            "instances": progress.add_task("Reading objects", total=None),
            "revisions": progress.add_task("Reading revisions", total=None),
        }
        return await rebuild(
            platform.ports("indexer"),
            lambda phase, done: progress.update(tasks[phase], completed=done),
            parsers=IndexerSettings.load().parsers,
        )


async def set_aside_unusable(path: Path) -> Path | None:
    """Renames an index that is damaged or of another release: to replace such a one is what a rebuild is for.

    Returns:
        Its new name, or None if it can be opened.

    Raises:
        Misconfigured, IndexUnavailable: for any other reason.
    """
    try:
        index = await SqliteIndex.open(path)
        try:
            await index.check()
        finally:
            await index.close()
    except (Misconfigured, IndexUnavailable) as error:
        rebuilding = isinstance(error, IndexUnavailable) and not error.ids
        if rebuilding:
            return None
        if "version" not in error.ids and error.ids.get("cause") not in _DAMAGED:
            raise
    else:
        return None
    kept = path.with_name(f"{path.name}.unusable-{secrets.token_hex(4)}")
    # The log before its database: a new database must never find the log of an old one.
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    return kept


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
