"""`isocenter doctor`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from isocenter.cli import checkup, checkup_engines
from isocenter.cli.checkup import Finding, Verdict
from isocenter.cli.errors import Exit
from isocenter.cli.options import (
    DEFAULT_DATA_DIR,
    DEFAULT_DICOM_PORT,
    DEFAULT_HTTP_PORT,
    DataDir,
    Json,
    examples,
)
from isocenter.cli.output import emit_json, stdout

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red", Verdict.INFO: "dim"}


class _Mark(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    INFO = "-"


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter doctor                             # before the first start, or when something is odd",
            "isocenter doctor --json | jq '.[] | select(.verdict != \"ok\")'",
        )
    )(doctor)


def doctor(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    dicom_port: Annotated[int, typer.Option(envvar="ISOCENTER_INGEST_DICOM_PORT")] = DEFAULT_DICOM_PORT,
    http_port: Annotated[int, typer.Option(envvar="ISOCENTER_GATEWAY_HTTP_PORT")] = DEFAULT_HTTP_PORT,
    json: Json = False,
) -> None:
    """Check this machine: ports, disk, clock, limits, keys, versions.

    Where the environment names Kafka, MongoDB or S3, asks them, too.

    Changes nothing, except that it writes and removes one small file to measure the disk.

    Exits 1 when a check fails; warnings do not count.
    """
    findings = checkup.examine(data_dir, dicom_port=dicom_port, http_port=http_port)
    findings += checkup_engines.examine_engines(data_dir)
    if json:
        emit_json([finding.as_json() for finding in findings])
    else:
        stdout().print(_table(findings))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(Exit.REFUSED)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in findings:
        value = Text(finding.value)
        if finding.hint:
            value.append(f"\n{finding.hint}", style="cyan")
        table.add_row(
            Text(_Mark[finding.verdict.name].value, style=_STYLES[finding.verdict]), finding.name, value
        )
    return table
