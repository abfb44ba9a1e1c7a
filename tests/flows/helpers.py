"""What flow tests share: the command line as a user runs it, and a site seen from outside."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isocenter.cli.site import open_index
from isocenter.common.index.records import SettleState, StudyRecord

SETTLE_SECONDS = 60.0
ENVIRONMENT = {
    "ISOCENTER_INDEXER_QUIET_SECONDS": "3",
    "ISOCENTER_INDEXER_QUIET_AFTER_CLOSE_SECONDS": "0.3",
    "ISOCENTER_INDEXER_SETTLE_POLL_SECONDS": "0.1",
}
"""Short periods: these tests wait for studies to settle."""


def isocenter(*arguments: str | Path, data_dir: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does, on a data directory, and checks the exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "isocenter.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "ISOCENTER_DATA_DIR": str(data_dir)},
        timeout=180,
        check=False,
    )
    assert expect == done.returncode, f"{arguments}: {done.stdout}{done.stderr}"
    return done


def isocenter_json(*arguments: str | Path, data_dir: Path, expect: int = 0) -> Any:
    """The same with `--json`, parsed: stdout holds one document and nothing else."""
    return json.loads(isocenter(*arguments, "--json", data_dir=data_dir, expect=expect).stdout)


def settled(data_dir: Path, studies: Iterable[str], *, version: int = 1) -> dict[str, StudyRecord]:
    """Waits until each of these studies has settled with at least this version."""
    wanted = set(studies)
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = {
            record.study_instance_uid: record
            for record in asyncio.run(_records(data_dir))
            if record.study_instance_uid in wanted
            and record.state is SettleState.SETTLED
            and record.version >= version
        }
        if len(found) == len(wanted):
            return found
        assert time.monotonic() < deadline, (
            f"{len(wanted) - len(found)} of {len(wanted)} studies have not settled"
        )
        time.sleep(0.1)


def dump(data_dir: Path) -> list[str]:
    """The whole index in its comparable form. Two indexes are equal when their dumps are."""
    return asyncio.run(_dump(data_dir))


async def _records(data_dir: Path) -> list[StudyRecord]:
    async with open_index(data_dir) as index:
        return [record async for record in index.studies()]


async def _dump(data_dir: Path) -> list[str]:
    async with open_index(data_dir) as index:
        return [line async for line in index.dump()]
