"""`isocenter synth-ct`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isocenter.cli.options import Json, examples
from isocenter.cli.output import emit_json, size_text, stdout, step_progress
from isocenter.cli.synth import write_ct


def register(app: typer.Typer) -> None:
    app.command(
        "synth-ct",
        epilog=examples(
            "isocenter synth-ct ct                        # 200 slices, 105 MB, some seconds",
            "isocenter synth-ct ct2 --slices 20 --seed 2  # another patient, another study",
        ),
    )(synth_ct)


def synth_ct(
    directory: Annotated[Path, typer.Argument(help="Folder for the files; made if absent.", file_okay=False)],
    slices: Annotated[int, typer.Option(min=1, max=2000)] = 200,
    seed: Annotated[
        int, typer.Option(min=0, help="Same seed, same bytes; another seed, another patient.")
    ] = 1,
    json: Json = False,
) -> None:
    """Write a CT volume that looks like a torso and is nobody's.

    512 x 512, Hounsfield units, correct geometry, fictional patient: something to send that is no secret.
    """
    with step_progress(quiet=json) as progress:
        task = progress.add_task("Drawing slices", total=slices)
        paths = write_ct(
            directory,
            slices=slices,
            seed=seed,
            on_slice=lambda number: progress.update(task, completed=number),
        )
    total = sum(path.stat().st_size for path in paths)
    if json:
        emit_json({"directory": directory, "files": len(paths), "bytes": total})
    else:
        stdout().print(f"{len(paths)} slices, {size_text(total)}, in {directory}")
