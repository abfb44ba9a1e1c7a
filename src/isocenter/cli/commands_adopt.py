"""`isocenter adopt`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.text import Text

from isocenter.cli import state
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.migration.drain import drain
from isocenter.cli.migration.sides import Side
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, size_text, stderr, stdout, step_progress
from isocenter.common.engines import Engines
from isocenter.common.errors import Misconfigured, Transient
from isocenter.common.objects.adopted import AdoptedStore
from isocenter.common.objects.archives import Archives, Place
from isocenter.common.runtime import open_platform
from isocenter.common.settings import PlatformSettings
from isocenter.ingest.adopt.adopter import Adopter, Report
from isocenter.ingest.adopt.ledger import Fate, Ledger, Way

_S3 = "s3://"
_DRAIN_SECONDS = 3600.0
_SHOWN = 20


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter adopt /mnt/old-archive             # register it where it lies",
            "isocenter adopt s3://old/studies --endpoint https://s3.example.org",
            "isocenter adopt /mnt/old-archive --move      # later: take it in, sealed, and remove it there",
            "isocenter adopt /mnt/old-archive --json | jq .reasons",
        )
    )(adopt)


def adopt(
    archive: Annotated[str, typer.Argument(help="A directory, or s3://bucket/prefix.")],
    copy: Annotated[bool, typer.Option("--copy", help="Take them into the store, and keep them.")] = False,
    move: Annotated[
        bool,
        typer.Option("--move", help="Take them into the store, and remove each once that is durable."),
    ] = False,
    endpoint: Annotated[str, typer.Option(help="Of s3://...; its keys: AWS_ACCESS_KEY_ID, ...")] = "",
    region: Annotated[str, typer.Option(help="Of s3://...")] = "us-east-1",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Json = False,
) -> None:
    """Register an archive of DICOM files where it lies, without copying, and index it.

    Every file is read once, checked like everything that arrives, and from then on served from where it is.
    Whatever is read later is compared with what was read now. Such files are not sealed: with --copy or
    --move, now or later, they come into the store.

    Stop the platform first. If it is interrupted, run it again: it goes on where it ended.

    Exits 1 when a DICOM file was refused; what is no DICOM is skipped and counted.
    """
    if copy and move:
        raise CommandError("choose one of --copy and --move", code=Exit.USAGE)
    here = data_dir.resolve()
    way = Way.MOVE if move else Way.COPY if copy else Way.REFER
    place = _place(archive, endpoint, region)
    if Path(place.root) in {here, *here.parents} or here in Path(place.root).parents:
        raise CommandError("the archive and the data directory lie in one another", code=Exit.USAGE)
    started = time.perf_counter()
    with state.hold(data_dir, purpose="adopt"), _told(), step_progress(quiet=json) as progress:
        report = asyncio.run(_adopt(data_dir, place, way, progress))
    document = _as_json(report, place, way, time.perf_counter() - started)
    emit_json(document) if json else _show(document)
    if report.fates[Fate.REFUSED]:
        raise typer.Exit(Exit.REFUSED)


def _place(archive: str, endpoint: str, region: str) -> Place:
    if archive.startswith(_S3):
        if not endpoint:
            raise CommandError("s3:// needs an endpoint", hint="--endpoint https://...", code=Exit.USAGE)
        return Place(archive.rstrip("/"), endpoint, region)
    path = Path(archive).resolve()
    if not path.is_dir():
        raise CommandError(f"{archive} is no directory", code=Exit.NOT_FOUND)
    return Place(str(path))


async def _adopt(data_dir: Path, place: Place, way: Way, progress: Progress) -> Report:
    settings = PlatformSettings.load(data_dir=data_dir, log_level="error")
    engines = Engines.load(settings)
    embedded = engines.s3.endpoint is None
    if not embedded and way is Way.REFER:
        raise Misconfigured("replicas cannot read an archive in place: use --copy or --move")
    archives = Archives(data_dir)
    archives.add(place)
    task = progress.add_task("Reading files", total=None)
    async with open_platform(settings, engines=engines) as platform:
        store = platform.store
        if not isinstance(store, AdoptedStore):
            raise Misconfigured("the store of this site cannot hold references")
        with Ledger(data_dir) as ledger:
            adopter = Adopter(
                platform.ports("ingest"),
                place.open(),
                place.root,
                way,
                ledger,
                store=store,
                watch=lambda report: progress.update(task, completed=report.files),
            )
            report = await adopter.run()
    if embedded:
        progress.add_task("Indexing", total=None)
        await drain(Side.embedded(data_dir, engines.key_file), seconds=_DRAIN_SECONDS)
    return report


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Transient as error:
        raise CommandError(
            str(error), hint="mend it and run this again: it goes on where it ended", code=Exit.UNREACHABLE
        ) from error


def _as_json(report: Report, place: Place, way: Way, seconds: float) -> dict[str, Any]:
    return {
        "archive": place.root,
        "way": way.value,
        "files": report.files,
        "done_before": report.before,
        **{fate.value: report.fates[fate] for fate in Fate},
        "removed": report.removed,
        "bytes": report.bytes,
        "seconds": round(seconds, 3),
        "reasons": dict(report.reasons.most_common()),
        "named": [
            {"path": _text(each.path), "fate": each.fate.value, "reason": each.reason}
            for each in report.named
        ],
    }


def _text(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _show(document: dict[str, Any]) -> None:
    verb = {"refer": "registered", "copy": "taken in", "move": "moved"}[document["way"]]
    out = stdout()
    out.print(
        f"[green]{document['taken']} instances {verb}[/green] ({size_text(document['bytes'])}) in"
        f" {document['seconds']:.1f} s; {document['duplicate']} more files are duplicates,"
        f" {document['skipped']} are no DICOM, {document['refused']} were refused"
    )
    if document["done_before"]:
        out.print(f"[dim]{document['done_before']} files were done by an earlier run[/dim]")
    refused = [each for each in document["named"] if each["fate"] == Fate.REFUSED]
    for each in refused[:_SHOWN]:
        stderr().print(Text(f"refused {each['path']}: {each['reason']}", style="yellow"), soft_wrap=True)
    if len(refused) > _SHOWN:
        stderr().print("more: see --json")
