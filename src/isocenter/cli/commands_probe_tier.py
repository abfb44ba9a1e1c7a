"""`isocenter probe-tier`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from isocenter.cli.errors import Exit
from isocenter.cli.options import Json, examples
from isocenter.cli.output import emit_json, stderr, stdout
from isocenter.common.objects.worm import CaseResult, WormReport, probe
from isocenter.common.settings import S3Settings


def register(app: typer.Typer) -> None:
    app.command(
        "probe-tier",
        epilog=examples(
            "isocenter probe-tier                         # the store that ISOCENTER_S3_ENDPOINT names",
            "isocenter probe-tier --endpoint https://s3.example.org --json | jq .passed",
        ),
    )(probe_tier)


def probe_tier(
    endpoint: Annotated[
        str | None, typer.Option(help="Instead of ISOCENTER_S3_ENDPOINT.", show_default=False)
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Instead of ISOCENTER_S3_REGION.", show_default=False)
    ] = None,
    lock_seconds: Annotated[
        float, typer.Option(min=3, max=3600, help="How long the probe's own locks last; it waits for them.")
    ] = 60,
    json: Json = False,
) -> None:
    """Try to destroy locked objects: whether an S3 store may hold a tier that calls itself WORM.

    Makes a bucket isocenter-probe-..., locks objects in it for a minute, tries in every known way to delete,
    overwrite and unlock them, and removes the bucket. The site's own bucket is not touched. Credentials come
    from ISOCENTER_S3_ACCESS_KEY and ISOCENTER_S3_SECRET_KEY and must be allowed to make buckets.

    A case in brackets is information: the platform does without it.

    Exits 1 unless every other case passes.
    """
    given = {"endpoint": endpoint, "region": region}
    settings = S3Settings.load(**{name: value for name, value in given.items() if value is not None})
    report = probe(
        settings,
        lock_seconds=lock_seconds,
        tell=lambda result: None if json else stderr().print(f"  {result.case}", style="dim"),
    )
    if json:
        emit_json(as_json(report))
    else:
        _show(report)
    if not report.passed:
        raise typer.Exit(Exit.REFUSED)


def as_json(report: WormReport) -> dict[str, object]:
    return {
        "endpoint": report.endpoint,
        "passed": report.passed,
        "left_bucket": report.left or None,
        "cases": [
            {
                "case": result.case.value,
                "required": result.case.required,
                "passed": result.passed,
                "expected": result.case.meaning,
                "seen": result.seen,
            }
            for result in report.results
        ],
    }


def _show(report: WormReport) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "case", "what must hold", "seen"):
        table.add_column(name, overflow="fold")
    for result in report.results:
        name = result.case.value if result.case.required else f"({result.case.value})"
        table.add_row(_mark(result), name, result.case.meaning, result.seen)
    stdout().print(table)
    if report.left:
        stderr().print(f"[yellow]bucket {report.left} could not be removed[/yellow]")
    if report.passed:
        stdout().print(f"[green]{report.endpoint} keeps what it locks[/green]")
    else:
        stdout().print(f"[red]{report.endpoint} must not hold a WORM tier[/red]")


def _mark(result: CaseResult) -> str:
    if result.passed:
        return "[green]yes[/green]"
    return "[red]NO[/red]" if result.case.required else "[yellow]no[/yellow]"
