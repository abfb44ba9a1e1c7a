"""A site that has moved away leaves its data behind. Whoever starts the platform on them by habit would have
two sites that take each other's studies: so the directory says where the site went.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from isocenter.cli.errors import CommandError, Exit
from isocenter.common.engines import Engines
from isocenter.common.settings import PlatformSettings

_MARK = "moved.json"


def mark(data_dir: Path, to: dict[str, str]) -> None:
    """Whole or not at all (mode 0600). Raises OSError."""
    temporary = data_dir / f".{_MARK}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it takes the descriptor
        file.write(json.dumps({"to": to}, indent=2) + "\n")
        file.flush()
        os.fsync(descriptor)
    temporary.replace(data_dir / _MARK)


def unmark(data_dir: Path) -> None:
    """The site is back."""
    (data_dir / _MARK).unlink(missing_ok=True)


def refuse_if_moved(data_dir: Path) -> None:
    """Raises CommandError: the platform would run on what a site has left behind."""
    path = data_dir / _MARK
    if (
        not path.exists()
        or Engines.load(PlatformSettings.load(data_dir=data_dir)).kafka.bootstrap is not None
    ):
        return
    raise CommandError(
        f"the site in {data_dir} has moved into a cluster: {path.name} says where",
        hint=f"isocenter migrate down brings it back; rm {path} starts what was left behind",
        code=Exit.MISCONFIGURED,
    )
