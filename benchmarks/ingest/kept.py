"""What a data directory holds, seen from outside the process that writes it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

_INSTANCES = Path("objects") / "objects" / "instances"
_TOPIC = "imaging.instance.v1"
_PLAIN = b"1.2.840.10008.5.1.4.1.1."
"""Begins the SOP Class UID that every instance of the corpora has in its first bytes."""


def objects_kept(data: Path) -> int:
    """Instances in the object store."""
    return sum(len(files) for _, _, files in os.walk(data / _INSTANCES))


def announced(data: Path) -> int:
    """Instances whose event is in the event log. Events may carry many instances each;
    those that end a transfer only their number.
    """
    query = "SELECT value FROM records JOIN partitions ON records.id >> 40 = partitions.id WHERE topic = ?"
    with contextlib.closing(sqlite3.connect(f"file:{data / 'bus.sqlite'}?mode=ro", uri=True)) as log:
        events = (json.loads(value).get("instances") for (value,) in log.execute(query, (_TOPIC,)))
        return sum(len(instances) for instances in events if isinstance(instances, list))


def sealed(data: Path) -> bool | None:
    """Whether a stored instance cannot be read on the disk; None where none is stored."""
    found = next((found for found in os.walk(data / _INSTANCES) if found[2]), None)
    if found is None:
        return None
    directory, _, files = found
    with (Path(directory) / files[0]).open("rb") as first:
        return _PLAIN not in first.read(4096)
