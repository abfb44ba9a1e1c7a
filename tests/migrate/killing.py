"""Runs that die, or have little room."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass
from typing import Any

from isocenter.cli.migration.sides import Side

KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Driver:
    """Runs migrations in processes of their own."""

    process: subprocess.Popen[str]
    source: Side
    target: Side
    environment: dict[str, str] | None = None
    """The target is what it names."""

    def run(
        self,
        *,
        kill_at: tuple[str, int] | None = None,
        kill_after: float | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, Any]:
        """One run, from nothing but what lies there.

        Args:
            kill_at: a step of the watch, and the call of it at which the run kills itself.
            kill_after: seconds after which it does.
            max_bytes: the largest file that it may write.

        Returns:
            `status`, of the process, and `step`, the last one told.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        wish = {
            "source": str(self.source.engines.platform.data_dir),
            "target": str(self.target.engines.platform.data_dir),
            "environment": self.environment,
            "kill_at": kill_at,
            "kill_after": kill_after,
            "max_bytes": max_bytes,
        }
        self.process.stdin.write(json.dumps(wish) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer
