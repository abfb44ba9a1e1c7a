"""`isocenter view`: a picture of a staged volume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from isocenter.cli.errors import CommandError
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, stdout
from isocenter.cli.stager import Socket, Target, connected
from isocenter.gpu_stager.picture import encode_png, montage


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "isocenter view 2.25.3107... --png ct.png     # stages it first if need be",
            "isocenter view k7mz.../h2qx... --png mr.png --slices 30",
        )
    )(view)


def view(
    target: Target,
    png: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    slices: Annotated[int, typer.Option(min=1, max=200, help="At most so many.")] = 12,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    socket: Socket = None,
    json: Json = False,
) -> None:
    """Draw a montage of the largest volume of a study, as it is staged: a person sees that it is right.

    The picture shows a patient: keep it where the data directory is kept.
    """
    with connected(data_dir, socket) as stager, stager.open(target) as volume:
        loaded = volume.load(out=np.empty(volume.shape, volume.dtype), verify=True)
        picture = montage(loaded.array, volume.stack, count=slices)
        stack = volume.stack
    try:
        png.write_bytes(encode_png(picture))
        png.chmod(0o600)
    except OSError as error:
        raise CommandError(f"cannot write the picture: {error.strerror}") from None
    facts = {
        "png": png,
        "shape": list(stack.shape),
        "dtype": stack.dtype,
        "spacing_mm": list(stack.geometry.spacing),
        "order": stack.geometry.order,
        "units": stack.rescale.units,
        "mode": loaded.mode.value,
        "seconds": round(loaded.seconds, 4),
    }
    if json:
        emit_json(facts)
        return
    spacing = " x ".join("?" if each is None else f"{each:g}" for each in stack.geometry.spacing)
    out = stdout()
    out.print(f"{png}: {picture.shape[1]} x {picture.shape[0]} pixels", markup=False)
    out.print(
        f"volume {' x '.join(map(str, stack.shape))} of {stack.dtype}, {spacing} mm (row, column, slice)"
    )
    out.print(f"checksums hold; loaded by {loaded.mode} in {loaded.seconds * 1000:.0f} ms")
