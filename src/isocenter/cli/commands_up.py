"""`isocenter up`."""

from __future__ import annotations

import asyncio
import json as jsonlib
import os
import sys
from typing import Annotated

import typer
from rich.panel import Panel

from isocenter.cli import state
from isocenter.cli.errors import Exit
from isocenter.cli.moved import refuse_if_moved
from isocenter.cli.options import (
    DEFAULT_AE_TITLE,
    DEFAULT_DATA_DIR,
    DEFAULT_DICOM_PORT,
    DEFAULT_HTTP_PORT,
    DataDir,
    Json,
    examples,
)
from isocenter.cli.output import stdout
from isocenter.cli.platform import EmbeddedSettings, Started, running_platform
from isocenter.common.serving import loop_factory
from isocenter.common.telemetry.log import LogFormat


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter up                                   # here, until Ctrl-C",
            "isocenter up --data-dir /srv/isocenter --aet ARCHIVE",
            "isocenter up --dicom-port 0 --http-port 0 --json   # any free ports, told on stdout",
        )
    )(up)


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    host: Annotated[
        str, typer.Option(help="Address to listen on. There is no sign-in yet: keep it on loopback.")
    ] = "127.0.0.1",
    dicom_port: Annotated[
        int, typer.Option(envvar="ISOCENTER_INGEST_DICOM_PORT", min=0, max=65535, help="0: any free port.")
    ] = DEFAULT_DICOM_PORT,
    http_port: Annotated[
        int, typer.Option(envvar="ISOCENTER_GATEWAY_HTTP_PORT", min=0, max=65535, help="0: any free port.")
    ] = DEFAULT_HTTP_PORT,
    aet: Annotated[
        str, typer.Option(envvar="ISOCENTER_INGEST_AE_TITLE", help="AE title.")
    ] = DEFAULT_AE_TITLE,
    json: Json = False,
) -> None:
    """Start the platform in this process: ingest, indexer and gateway.

    No server, no database, no container is needed: everything lives in the data directory.

    Ctrl-C (or SIGTERM) drains and stops; a second one stops at once.
    The log goes to stderr: readable on a terminal, JSON elsewhere (ISOCENTER_LOG_FORMAT).
    """
    settings = EmbeddedSettings(data_dir, host, dicom_port, http_port, aet)
    if sys.stderr.isatty():
        os.environ.setdefault("ISOCENTER_LOG_FORMAT", LogFormat.HUMAN.value)
        os.environ.setdefault("ISOCENTER_LOG_LEVEL", "warning")
    refuse_if_moved(data_dir)
    with state.hold(data_dir, purpose="start") as lock, asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(_run(settings, lock, as_json=json))
        except asyncio.CancelledError:
            raise typer.Exit(Exit.INTERRUPTED) from None


async def _run(settings: EmbeddedSettings, lock: state.DataDirLock, *, as_json: bool) -> None:
    async with running_platform(settings, lock) as started:
        if as_json:
            sys.stdout.write(jsonlib.dumps(started.running.as_json()) + "\n")
            sys.stdout.flush()
        else:
            print_banner(started)
        await started.stop.wait()
        if not as_json:
            stdout().print("Draining: what was acknowledged is durable either way. Ctrl-C again to stop now.")


def print_banner(started: Started) -> None:
    at, settling = started.running, started.settling
    where = f"{at.host}:{at.http_port}"
    out = stdout()
    out.print(
        Panel.fit(
            f"[bold]DICOM[/bold]      {at.ae_title} at {at.host}:{at.dicom_port}   (C-STORE, C-ECHO)\n"
            f"[bold]DICOMweb[/bold]   {at.dicom_web}   (STOW-RS, QIDO-RS, WADO-RS)\n"
            f"[bold]Health[/bold]     http://{where}/readyz  /livez  /metrics\n"
            f"[bold]Data[/bold]       {at.data_dir}   (process {at.pid})\n"
            f"[bold]Settling[/bold]   {settling.after_transfer_seconds:g} s after a transfer closed, or"
            f" {settling.quiet_seconds:g} s without an arrival; production waits longer",
            title="Isocenter is ready",
            border_style="green",
        )
    )
    out.print("[bold]Try[/bold]")
    for line in (
        "isocenter synth-ct ct && isocenter send ct",
        "isocenter studies",
        f"storescu -aec {at.ae_title} {at.host} {at.dicom_port} ct/*.dcm",
        f"curl -s 'http://{where}/dicom-web/studies?limit=5'",
    ):
        out.print(f"  [cyan]{line}[/cyan]", soft_wrap=True)
    out.print(
        "[yellow]No sign-in and no TLS over HTTP in this release, and an index in clear:[/yellow] keep it on"
        f" loopback and the index on an encrypted disk. Keep a copy of {at.data_dir}/keys elsewhere: without"
        " it no object can be opened."
    )
    out.print("Ctrl-C stops.")
