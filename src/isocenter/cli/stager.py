"""The node's stager, as several commands reach it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from isocenter.cli.errors import CommandError, Exit
from isocenter.gpu_stager.agent.protocol import AgentError
from isocenter.gpu_stager.client import Stager, StagerUnavailable

Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        envvar="ISOCENTER_GPU_STAGER_SOCKET",
        help="The stager's socket, where it is not the data directory's.",
    ),
]
Target = Annotated[str, typer.Argument(help="STUDY or STUDY/SERIES: UIDs, or keys.", metavar="STUDY")]

_HINTS = {
    "not-found": "isocenter studies; a study is staged once it has settled",
    "too-large": "--force, or a larger ISOCENTER_GPU_STAGER_QUOTA_BYTES",
    "overloaded": "isocenter staged shows who holds the space",
    "cache-full": "isocenter staged shows who holds the space",
}


@contextlib.contextmanager
def connected(data_dir: Path, socket: Path | None) -> Iterator[Stager]:
    """Raises CommandError: no stager answers, or it refuses."""
    try:
        with Stager(socket, data_dir=data_dir) as stager:
            yield stager
    except StagerUnavailable as error:
        raise CommandError(
            error.message, hint="isocenter up, or --socket of the node's stager", code=Exit.UNREACHABLE
        ) from None
    except AgentError as error:
        code = Exit.NOT_FOUND if error.code == "not-found" else Exit.REFUSED
        raise CommandError(str(error), hint=_HINTS.get(str(error.code), ""), code=code) from None
