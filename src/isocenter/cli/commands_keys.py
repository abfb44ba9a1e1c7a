"""`isocenter keys status|rotate`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import typer
from rich.table import Table

from isocenter.cli import state
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.options import DEFAULT_DATA_DIR, DataDir, Json, examples
from isocenter.cli.output import emit_json, stdout, step_progress
from isocenter.cli.site import engines_of, require
from isocenter.common.clock import SystemClock
from isocenter.common.engines import KEYS_FILE
from isocenter.common.errors import Transient
from isocenter.common.keys import rotation
from isocenter.common.keys.rotation import KeyStatus
from isocenter.common.keys.study import StudyKeys


def register(app: typer.Typer) -> None:
    keys = typer.Typer(
        name="keys",
        help="The keys that studies are sealed with: what wraps them, and wrapping them anew.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    keys.command(
        "status", epilog=examples("isocenter keys status", "isocenter keys status --json | jq .behind")
    )(status)
    keys.command(
        "rotate", epilog=examples("isocenter keys rotate                        # with the platform stopped")
    )(rotate)
    app.add_typer(keys)


def status(data_dir: DataDir = DEFAULT_DATA_DIR, json: Json = False) -> None:
    """Say which wrapping key is in force, and how many study keys each one wraps. Shows no key."""
    _require(data_dir)
    with _told():
        found = asyncio.run(_status(data_dir))
    if json:
        emit_json({"current": found.current, "study_keys": found.rows, "behind": found.behind})
        return
    table = Table("wrapping key", "study keys", "")
    for name in sorted({found.current, *found.rows}):
        table.add_row(name, str(found.rows.get(name, 0)), "in force" if name == found.current else "old")
    stdout().print(table)
    if found.behind:
        stdout().print(f"{found.behind} study keys are wrapped by an old key: isocenter keys rotate")


def rotate(data_dir: DataDir = DEFAULT_DATA_DIR, json: Json = False) -> None:
    """Wrap every study key by a new wrapping key. Objects are not touched, however many there are.

    A key file in the data directory gets the new key by itself: stop the platform first, and back the file up
    afterwards. A key file that is mounted, OpenBao, Vault or KMS: bring the new key there first (a mounted
    file holds the old key and behind it the new one, 64 bytes), restart the services, then run this; take the
    old key away afterwards. If it is interrupted, run it again.
    """
    _require(data_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told())
        if _is_here(data_dir):
            stack.enter_context(state.hold(data_dir, purpose="keys rotate"))
        progress = stack.enter_context(step_progress(quiet=json))
        task = progress.add_task("Wrapping study keys", total=None)
        done, found = asyncio.run(_rotate(data_dir, lambda count: progress.update(task, completed=count)))
    if json:
        emit_json({"wrapped": done, "current": found.current})
    else:
        stdout().print(f"{done} study keys are wrapped by {found.current} now")


def _is_here(data_dir: Path) -> bool:
    engines = engines_of(data_dir)
    return engines.wrapping.wrapper == "file" and engines.wrapping.file is None


def _require(data_dir: Path) -> None:
    if engines_of(data_dir).mongo.uri is None:
        require(data_dir, KEYS_FILE)


@contextlib.asynccontextmanager
async def _opened(data_dir: Path) -> AsyncIterator[StudyKeys]:
    keys = await engines_of(data_dir).open_study_keys(SystemClock())
    try:
        yield keys
    finally:
        await keys.close()


async def _status(data_dir: Path) -> KeyStatus:
    async with _opened(data_dir) as keys:
        return await rotation.status(keys)


async def _rotate(data_dir: Path, tell: Callable[[int], None]) -> tuple[int, KeyStatus]:
    async with _opened(data_dir) as keys:
        return await rotation.rotate(keys, tell), await rotation.status(keys)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Says that nothing is lost when the table or the key service is down."""
    try:
        yield
    except Transient as error:
        raise CommandError(str(error), hint="mend it and run this again", code=Exit.UNREACHABLE) from error
