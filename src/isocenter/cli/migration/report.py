"""What a migration found and did: a plan before, a report after, which is kept."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from isocenter.cli.migration.drain import Waiting
from isocenter.cli.migration.events import TopicTally
from isocenter.cli.migration.objects import Comparison, Copied
from isocenter.cli.migration.records import RecordComparison
from isocenter.cli.migration.wrapping import KeyTally
from isocenter.common.keys import SiteKeys

FORMAT = "isocenter.migration-report"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do.

    Attributes:
        missing: objects that the target lacks, and their bytes.
        free_bytes: on the file system of the target; None where nobody can know.
        indexed: instances and conflicting objects that the source's index knows.
        instances: instance objects that the source's store holds.
    """

    source: dict[str, str]
    target: dict[str, str]
    objects: int
    size_bytes: int
    missing: int
    missing_bytes: int
    free_bytes: int | None
    studies: int
    indexed: int
    instances: int
    events: int
    waiting: Waiting

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """Both sides after a run, or as `--verify-only` found them.

    Attributes:
        keys: of studies; rows, never a key.
        copied: None where nothing was to be copied.
        events_copied: records that this run added to the target.
        index_rebuilt: False: the target's index equalled the source's before.
        unreadable: objects that the rebuild could not index.
    """

    source: dict[str, str]
    target: dict[str, str]
    fingerprint: str
    started_at: datetime
    finished_at: datetime
    release: str
    read_back: bool
    waiting: Waiting
    objects: Comparison
    index: RecordComparison
    events: list[TopicTally]
    keys: KeyTally
    copied: Copied | None = None
    keys_copied: int = 0
    events_copied: int = 0
    index_rebuilt: bool = False
    unreadable: int = 0

    @property
    def equal(self) -> bool:
        """Everything that the source has is at the target, and nothing else."""
        moved = self.copied is None or not self.copied.faults
        events = all(each.equal for each in self.events)
        return moved and self.keys.equal and self.objects.equal and self.index.equal and events

    def as_json(self) -> dict[str, Any]:
        faults = dict(self.objects.faults.named)
        if self.copied is not None:
            faults = {**self.copied.faults.named, **faults}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "equal": self.equal,
            "source": self.source,
            "target": self.target,
            "site": self.fingerprint,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "finished_at": self.finished_at.isoformat(timespec="seconds"),
            "release": self.release,
            "waiting": self.waiting.as_json(),
            "keys": {"copied": self.keys_copied, **asdict(self.keys), "equal": self.keys.equal},
            "objects": {
                "copied": self.copied.objects if self.copied else 0,
                "copied_bytes": self.copied.size_bytes if self.copied else 0,
                "unannounced": self.copied.pending if self.copied else 0,
                "read_back": self.read_back,
                "source": _store(self.objects.source),
                "target": _store(self.objects.target),
                "faults": self.objects.faults.counts,
                "named": faults,
                "equal": self.objects.equal,
            },
            "index": {
                "rebuilt": self.index_rebuilt,
                "unreadable": self.unreadable,
                "source": asdict(self.index.source),
                "target": asdict(self.index.target),
                "differing": self.index.differing,
                "named": self.index.named,
                "equal": self.index.equal,
            },
            "events": {
                "copied": self.events_copied,
                "topics": [asdict(each) for each in self.events],
                "equal": all(each.equal for each in self.events),
            },
        }


def sign(report: dict[str, Any], keys: SiteKeys) -> dict[str, Any]:
    """Adds a seal that only a holder of the site secret can make: a keyed hash of everything else."""
    body = {name: value for name, value in report.items() if name != "seal"}
    text = json.dumps(body, separators=(",", ":"), sort_keys=True)
    return {**body, "seal": keys.document_key(hashlib.sha256(text.encode()).hexdigest())}


def is_signed(report: dict[str, Any], keys: SiteKeys) -> bool:
    """Whether it is as it was written, by this site."""
    return bool(sign(report, keys)["seal"] == report.get("seal"))


def write(report: dict[str, Any], folder: Path, finished_at: datetime) -> Path:
    """Whole or not at all, under a name of its own (mode 0600). Raises OSError."""
    path = folder / f"migration-{finished_at:%Y%m%dT%H%M%S%fZ}.json"
    temporary = path.with_name(f".{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it takes the descriptor
        file.write(json.dumps(report, indent=2) + "\n")
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    return path


def _store(tally: Any) -> dict[str, Any]:
    return {"objects": tally.objects, "size_bytes": tally.size_bytes, "digest": tally.digest}
