"""Where commands write: results to stdout, everything else to stderr, so that `--json` can be piped."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from isocenter.cli.errors import CommandError

PIPED_WIDTH = 140
"""Columns when the output is no terminal: wide enough that tables keep their keys whole."""


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, width=width)


def stdout() -> Console:
    return _console(stderr=False)


def stderr() -> Console:
    return _console(stderr=True)


def emit_json(value: Any) -> None:
    """One JSON document on stdout, nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def report_error(error: CommandError) -> None:
    """The one line (and what to do) on stderr."""
    line = Text("error: ", style="bold red")
    line.append(error.message, style="default")
    console = stderr()
    console.print(line, soft_wrap=True)
    if error.hint:
        console.print(Text(f"  try: {error.hint}", style="cyan"), soft_wrap=True)


def transfer_progress(*, quiet: bool = False) -> Progress:
    """Progress of files; tasks carry a `bytes` field. On stderr, gone when done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("files  {task.fields[bytes]}"),
        TimeRemainingColumn(),
        console=stderr(),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )


def step_progress(*, quiet: bool = False) -> Progress:
    """Progress of counted steps; on stderr, gone when done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=stderr(),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )


def size_text(count: float) -> str:
    """Bytes for people: 1024-based, one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(type(value).__name__)
