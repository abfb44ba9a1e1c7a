"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DATA_DIR = Path(".data/isocenter")
DEFAULT_HOST = "127.0.0.1"
DEFAULT_DICOM_PORT = 11112
DEFAULT_HTTP_PORT = 8080
DEFAULT_AE_TITLE = "ISOCENTER"

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        "-d",
        envvar="ISOCENTER_DATA_DIR",
        help="Where the platform keeps everything.",
        file_okay=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")]


def examples(*lines: str) -> str:
    """The examples at the end of a command's help. A pair of `command  # what it does` per line."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)
