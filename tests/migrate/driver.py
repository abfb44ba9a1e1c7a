"""Migrates in a process of its own, which can be killed at a chosen moment or be given little room.

Reads one run per line from stdin, as JSON, and answers each with a line: see `tests.migrate.killing`. Every
run is a fork of a process that has done nothing but import.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.migrate.building import embedded

from isocenter.cli.errors import CommandError
from isocenter.cli.migration.engine import Migration
from isocenter.cli.migration.sides import Side
from isocenter.common.errors import IsocenterError


def main() -> None:
    print("ready", flush=True)  # noqa: T201 - it talks over its pipes
    for line in sys.stdin:
        run = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            os._exit(_migrate(run, writer))
        os.close(writer)
        with os.fdopen(reader) as told:
            steps = told.read().split()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer = {"status": status, "step": steps[-1] if steps else ""}
        print(json.dumps(answer), flush=True)  # noqa: T201 - as above


def _migrate(run: dict[str, Any], told: int) -> int:
    if run["max_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (run["max_bytes"], run["max_bytes"]))
    if run["kill_after"] is not None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, run["kill_after"])
    calls: Counter[str] = Counter()

    def watch(step: str, _done: int, _total: int | None) -> None:
        name = step.replace(" ", "-")
        calls[name] += 1
        os.write(told, name.encode() + b"\n")
        if [name, calls[name]] == run["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    here = embedded(Path(run["source"]))
    os.environ.update(run["environment"] or {})
    there = (
        Side.of_environment(Path(run["source"]), here.key_file)
        if run["environment"]
        else embedded(Path(run["target"]))
    )
    try:
        report = asyncio.run(Migration(here, there, watch=watch).run())
    except (CommandError, IsocenterError) as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        return 3
    return 0 if report.equal else 1


if __name__ == "__main__":
    main()
