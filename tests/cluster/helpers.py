"""What cluster tests share: sending to one replica, and waiting for what must come."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from testbed.cluster import Cluster, Replica

T = TypeVar("T")
SETTLE_SECONDS = 60.0


def send(cluster: Cluster, replica: Replica, *files: Path) -> Any:
    """C-STORE with `isocenter send` to one replica of ingest."""
    return cluster.isocenter_json(
        "send", *files, "--to", f"127.0.0.1:{replica.dicom_port}", "--aet", cluster.ae_title
    )


def settled(cluster: Cluster, study: str, version: int = 1) -> dict[str, Any]:
    """Waits until the study has settled with at least this version."""
    return until(
        lambda: next(
            (
                each
                for each in cluster.isocenter_json("studies", "--limit", "500")
                if each["study_instance_uid"] == study
                and each["state"] == "settled"
                and each["version"] >= version
            ),
            None,
        ),
        f"study did not settle with version {version}",
    )


def until(
    condition: Callable[[], T | None], failure: str | Callable[[], str], seconds: float = SETTLE_SECONDS
) -> T:
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, failure() if callable(failure) else failure
        time.sleep(0.2)
