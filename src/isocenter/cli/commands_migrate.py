"""`isocenter migrate up|down`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from isocenter.cli import moved, state
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.migration import report as reports
from isocenter.cli.migration.engine import DRAIN_SECONDS, Migration, Watch
from isocenter.cli.migration.report import Plan, Report
from isocenter.cli.migration.sides import Side
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, size_text, stderr, stdout, step_progress
from isocenter.cli.site import require
from isocenter.common.engines import INDEX_FILE
from isocenter.common.errors import Misconfigured, Transient
from isocenter.common.keys import SiteKeys
from isocenter.common.settings import KafkaSettings, MongoSettings, PlatformSettings, S3Settings

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be moved, and move nothing.")]
VerifyOnly = Annotated[bool, typer.Option("--verify-only", help="Compare both sides, and move nothing.")]
ReadBack = Annotated[
    bool,
    typer.Option(
        "--read-back", help="Compare by reading every byte of the target again, not by recorded digests."
    ),
]
DrainSeconds = Annotated[
    float, typer.Option(min=0, help="How long the source's indexer may take for events that wait.")
]

_STEPS = {
    "plan": "Looking at both sides",
    "drain": "Finishing work in hand",
    "keys": "Copying study keys",
    "objects": "Copying objects (bytes)",
    "events": "Copying events",
    "index": "Rebuilding the index",
    "compare objects": "Comparing objects",
    "compare index": "Comparing studies",
    "compare events": "Comparing events",
}


def register(app: typer.Typer) -> None:
    migrate = typer.Typer(
        name="migrate",
        help="Move a site from its data directory into a cluster, or back: whole, compared, resumable.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    migrate.command(
        "up",
        epilog=examples(
            "isocenter migrate up --dry-run               # with the platform stopped",
            "isocenter migrate up --json | jq .equal",
            "isocenter migrate up --verify-only --read-back",
        ),
    )(up)
    migrate.command(
        "down",
        epilog=examples("isocenter migrate down --data-dir /srv/isocenter    # with the cluster stopped"),
    )(down)
    app.add_typer(migrate)


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    dry_run: DryRun = False,
    verify_only: VerifyOnly = False,
    read_back: ReadBack = False,
    drain_seconds: DrainSeconds = DRAIN_SECONDS,
    json: Json = False,
) -> None:
    """Take the site in the data directory to the engines that the environment names.

    ISOCENTER_S3_*, ISOCENTER_MONGO_* and ISOCENTER_KAFKA_* name them, as for the services; the topics must be
    there (isocenter topics apply). Stop the platform first, and start the cluster's services afterwards. If
    it is interrupted, run it again: it goes on where it ended. The data directory stays as it is.

    When both sides are equal, `isocenter up` no longer starts on the data directory. Exits 1 when they are
    not.
    """
    require(data_dir, INDEX_FILE)
    local, named = _key_files(data_dir)
    key_file = local if named is None or local.exists() else named
    source, target = Side.embedded(data_dir, key_file), _cluster(data_dir, named or key_file)
    migration = Migration(source, target, drain_seconds=drain_seconds, read_back=read_back)
    if _main(migration, data_dir, dry_run=dry_run, verify_only=verify_only, json=json):
        moved.mark(data_dir, target.places())


def down(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    dry_run: DryRun = False,
    verify_only: VerifyOnly = False,
    read_back: ReadBack = False,
    drain_seconds: DrainSeconds = DRAIN_SECONDS,
    json: Json = False,
) -> None:
    """Bring the site on the engines that the environment names into a data directory.

    The directory is new, or the one that the site came from: then only what is new is copied. Stop ingest
    first, then every other service. If it is interrupted, run it again: it goes on where it ended. Nothing is
    deleted from the cluster.

    Exits 1 when both sides are not equal afterwards.
    """
    local, named = _key_files(data_dir)
    source, target = _cluster(data_dir, named or local), Side.embedded(data_dir, local)
    migration = Migration(source, target, drain_seconds=drain_seconds, read_back=read_back)
    if _main(migration, data_dir, dry_run=dry_run, verify_only=verify_only, json=json):
        moved.unmark(data_dir)


def _key_files(data_dir: Path) -> tuple[Path, Path | None]:
    """The secret in the data directory, and the one that the environment names."""
    return data_dir / "keys" / "site.key", PlatformSettings.load(data_dir=data_dir).site_key_file


def _cluster(data_dir: Path, key_file: Path) -> Side:
    side = Side.of_environment(data_dir, key_file)
    engines = side.engines
    named = {
        S3Settings.variable("endpoint"): engines.s3.endpoint,
        MongoSettings.variable("uri"): engines.mongo.uri,
        KafkaSettings.variable("bootstrap"): engines.kafka.bootstrap,
    }
    if missing := [name for name, value in named.items() if value is None]:
        raise Misconfigured(f"a site moves as a whole: set {', '.join(missing)}, too")
    return side


def _main(migration: Migration, data_dir: Path, *, dry_run: bool, verify_only: bool, json: bool) -> bool:
    """Whether the site has moved."""
    if dry_run and verify_only:
        raise CommandError("choose one of --dry-run and --verify-only", code=Exit.USAGE)
    with state.hold(data_dir, purpose="migrate"), _told(), _watched(quiet=json) as watch:
        migration = replace(migration, watch=watch)
        if dry_run:
            plan = asyncio.run(migration.plan())
        else:
            report = asyncio.run(migration.verify() if verify_only else migration.run())
    if dry_run:
        emit_json(plan.as_json()) if json else _show_plan(plan)
        return False
    document = reports.sign(report.as_json(), SiteKeys.load(migration.source.key_file))
    path = reports.write(document, data_dir, report.finished_at)
    if json:
        emit_json(document)
    else:
        _show(report)
        stdout().print(f"[dim]report: {path}[/dim]", soft_wrap=True)
    if not report.equal:
        raise typer.Exit(Exit.REFUSED)
    return not verify_only


@contextmanager
def _told() -> Iterator[None]:
    """Says that nothing is lost when a dependency is down or full."""
    try:
        yield
    except Transient as error:
        raise CommandError(
            str(error), hint="mend it and run this again: it goes on where it ended", code=Exit.UNREACHABLE
        ) from error


@contextmanager
def _watched(*, quiet: bool) -> Iterator[Watch]:
    with step_progress(quiet=quiet) as progress:
        tasks: dict[str, TaskID] = {}

        def watch(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(_STEPS[step], total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield watch


def _show_plan(plan: Plan) -> None:
    table = _table("", "from", "to")
    for name, place in plan.source.items():
        table.add_row(name, Text(place), Text(plan.target[name]))
    out = stdout()
    out.print(table)
    free = "not known" if plan.free_bytes is None else size_text(plan.free_bytes)
    table = _table("what", "count", "")
    table.add_row("objects", str(plan.objects), size_text(plan.size_bytes))
    table.add_row("  to copy", str(plan.missing), f"{size_text(plan.missing_bytes)}, free: {free}")
    table.add_row("studies", str(plan.studies), f"{plan.waiting.receiving} still receiving")
    table.add_row("instances", str(plan.instances), f"{plan.indexed} in the index")
    table.add_row("events", str(plan.events), f"{plan.waiting.dead_letters} dead letters")
    out.print(table)
    if plan.instances != plan.indexed:
        out.print(
            "[yellow]the index does not know exactly the instances that are stored:[/yellow] run"
            " `isocenter reindex` there first, or the two indexes will differ"
        )
    if plan.waiting.can_be_drained:
        words = plan.waiting.describe() or f"{plan.waiting.unannounced} objects are not announced"
        out.print(f"first finished by the source's own indexer: {words}")


def _show(report: Report) -> None:
    table = _table("what", "source", "target", "", "digest (SHA-256)")
    keys = report.keys
    table.add_row("study keys", str(keys.source), str(keys.target), _equal(keys.equal), "")
    one, other = report.objects.source, report.objects.target
    table.add_row(
        "objects",
        f"{one.objects} ({size_text(one.size_bytes)})",
        f"{other.objects} ({size_text(other.size_bytes)})",
        _equal(report.objects.equal),
        _digests(one.digest, other.digest),
    )
    table.add_row(
        "studies",
        str(report.index.source.studies),
        str(report.index.target.studies),
        _equal(report.index.equal),
        _digests(report.index.source.digest, report.index.target.digest),
    )
    for topic in report.events:
        table.add_row(
            topic.topic, str(topic.source), str(topic.target), _equal(topic.equal), topic.digest[:16]
        )
    out = stdout()
    out.print(table)
    if report.copied is not None:
        out.print(
            f"moved {report.copied.objects} objects ({size_text(report.copied.size_bytes)}) and"
            f" {report.events_copied} events; the index was"
            f" {'rebuilt' if report.index_rebuilt else 'equal already'}"
        )
    if report.waiting.receiving:
        out.print(f"{report.waiting.receiving} studies are still receiving: they settle at the target")
    _show_faults(report)
    out.print("[green]equal[/green]" if report.equal else "[red]not equal[/red]")


def _show_faults(report: Report) -> None:
    err = stderr()
    named = report.as_json()["objects"]["named"]
    for kind, keys in named.items():
        for key in keys:
            err.print(f"[red]{kind}[/red] {key}", soft_wrap=True)
    for study in report.index.named:
        err.print(f"[red]differs in the index[/red] {study}", soft_wrap=True)
    if report.index.differing and report.objects.equal:
        err.print(
            "the objects are equal and the indexes are not: one of them is not what its objects say. Run"
            " `isocenter reindex` on the source and then this again",
            style="yellow",
        )


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _equal(equal: bool) -> str:
    return "[green]=[/green]" if equal else "[red]differs[/red]"


def _digests(one: str, other: str) -> str:
    return one[:16] if one == other else f"{one[:16]} / {other[:16]}"
