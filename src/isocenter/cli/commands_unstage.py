"""`isocenter unstage`."""

from __future__ import annotations

from typing import Annotated

import typer

from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, stdout
from isocenter.cli.stager import Socket, connected


def register(app: typer.Typer) -> None:
    app.command(epilog=examples("isocenter unstage k7mz...", "isocenter unstage '*'"))(unstage)


def unstage(
    target: Annotated[str, typer.Argument(help="STUDY, STUDY/SERIES, or * for all.", metavar="STUDY")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    socket: Socket = None,
    json: Json = False,
) -> None:
    """Remove staged copies from this node. The study itself is as safe as before; what is in use stays."""
    with connected(data_dir, socket) as stager:
        gone = stager.evict(target)
    if json:
        emit_json(gone)
        return
    stdout().print(f"{len(gone)} staged series removed from this node")
