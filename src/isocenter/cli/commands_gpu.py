"""`isocenter gpu probe`: what this node can do with staged volumes, and why not more."""

from __future__ import annotations

import json as jsonlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isocenter.cli.options import Json, examples
from isocenter.cli.output import emit_json, size_text, stdout
from isocenter.gpu_stager.modes.probe import LIMIT_SECONDS
from isocenter.gpu_stager.modes.probe import probe as run_probe
from isocenter.gpu_stager.modes.verdict import Mode

_MEANS = {
    Mode.GDS_NVFS: "GPUDirect Storage through nvidia-fs: no copy through the CPU",
    Mode.GDS_P2PDMA: "GPUDirect Storage through the kernel's peer-to-peer DMA",
    Mode.KVIKIO_COMPAT: "kvikio: one pinned copy in host memory, over several threads",
    Mode.POSIX_PINNED: "our own reads into pinned memory, then a copy to the device",
    Mode.NUMPY: "host memory only",
}


def register(app: typer.Typer) -> None:
    gpu = typer.Typer(
        name="gpu",
        help="GPUs of this node: what staged volumes can be loaded with.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    gpu.callback()(lambda: None)
    gpu.command("probe", epilog=examples("isocenter gpu probe", "isocenter gpu probe --json | jq -r .mode"))(
        probe
    )
    app.add_typer(gpu)


def probe(
    folder: Annotated[
        Path | None,
        typer.Option(
            help="On the disk of the staged volumes: GPUDirect depends on its file system.", file_okay=False
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=300, help="What hangs longer is not used.")] = (
        LIMIT_SECONDS
    ),
    json: Json = False,
) -> None:
    """Try cupy, kvikio and GPUDirect Storage in a child process, and say how far each came."""
    with tempfile.TemporaryDirectory() as scratch:
        verdict = run_probe(folder or Path(scratch), limit_seconds=seconds)
    if json:
        emit_json(jsonlib.loads(verdict.to_json()))
        return
    out = stdout()
    out.print(f"[bold]{verdict.mode}[/bold]: {_MEANS[verdict.mode]}")
    for reason in verdict.reasons:
        out.print(f"no faster: {reason}", markup=False)
    if verdict.devices:
        table = Table("device", "UUID", "name", "memory")
        for device in verdict.devices:
            table.add_row(f"cuda:{device.index}", device.uuid, device.name, size_text(device.total_bytes))
        out.print(table)
    for name, version in sorted(verdict.versions.items()):
        out.print(f"{name} {version}", markup=False)
    out.print(f"found out in {verdict.seconds:.1f} s")
