"""Revision objects: the record of a settled study version in the object store, beside the instances.

`revisions/<study_key>/<version:020d>-<content>` where `content` names the set of current instances. It is
written *before* the index settles. `...-<content>.settled`, empty, is written *after* the index has settled
and the event is out; that this is still to be done is noted in the transaction that settles. Objects are
never overwritten, so whatever moment the process dies at, the pair tells a later settler and a rebuild what
to do:

* Nothing in the store: the process died before; it settles as if nothing had been.
* A revision, and the study still holds its instances: a live index knows whether it has settled. If not, the
  settler adopts the revision: same event id, time and reason. If the index is lost, nobody knows whether the
  event went out: a rebuild leaves the study due, one version lower, so that the settler adopts the revision
  and the event goes out (again, with the same id).
* A revision, and the study has other instances by now: a live index that had not settled settles the same
  version under another name. A rebuild takes the version as used.
* A revision with its `.settled`: a rebuild restores exactly this.

A rebuild takes the version as used.
* A revision with its `.settled`: a rebuild restores exactly this.

A rebuild takes, of the highest version, the one with `.settled`; else the one whose instances are the current
ones; else the one settled last, and treats the version as used: a version must never mean two things.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from isocenter.common.errors import IntegrityError
from isocenter.common.events.models import SettleReason
from isocenter.common.keys import SiteKeys

FORMAT = "isocenter.study-revision"
FORMAT_VERSION = 1
PREFIX = "revisions/"
SETTLED = ".settled"


@dataclass(frozen=True, slots=True)
class Revision:
    """What one settled version consists of. Holds no UID and no PHI.

    Attributes:
        content: name of the set of current instances (see `content_of`).
        event_id: of the `study.settled` event that reports it.
        manifests: series key -> manifest object key.
    """

    study_key: str
    version: int
    content: str
    reason: SettleReason
    settled_at: datetime
    event_id: str
    series: int
    instances: int
    size_bytes: int
    modalities: tuple[str, ...]
    manifests: dict[str, str]

    @property
    def object_key(self) -> str:
        return f"{PREFIX}{self.study_key}/{self.version:020d}-{self.content}"

    @property
    def settled_key(self) -> str:
        return self.object_key + SETTLED


def version_of(object_key: str) -> int:
    """The version that the name of a revision object carries; 0 if it is not one of ours."""
    number = object_key.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdecimal() else 0


def content_of(keys: SiteKeys, object_keys: Iterable[str]) -> str:
    """Names a set of instances, whatever their order."""
    return keys.document_key(hashlib.sha256("\n".join(sorted(object_keys)).encode()).hexdigest())


def dump(revision: Revision) -> bytes:
    document: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "study_key": revision.study_key,
        "version": revision.version,
        "content": revision.content,
        "reason": revision.reason.value,
        "settled_at": revision.settled_at.isoformat(timespec="microseconds"),
        "event_id": revision.event_id,
        "series": revision.series,
        "instances": revision.instances,
        "size_bytes": revision.size_bytes,
        "modalities": list(revision.modalities),
        "manifests": revision.manifests,
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def parse(data: bytes) -> Revision:
    """Raises IntegrityError for anything that is not a revision of a format we know."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT or document["format_version"] != FORMAT_VERSION:
            raise IntegrityError("a revision of an unknown format")
        return Revision(
            study_key=document["study_key"],
            version=document["version"],
            content=document["content"],
            reason=SettleReason(document["reason"]),
            settled_at=datetime.fromisoformat(document["settled_at"]),
            event_id=document["event_id"],
            series=document["series"],
            instances=document["instances"],
            size_bytes=document["size_bytes"],
            modalities=tuple(document["modalities"]),
            manifests=document["manifests"],
        )
    except (ValueError, KeyError, TypeError):
        raise IntegrityError("not a study revision") from None


@dataclass(frozen=True, slots=True)
class Restoration:
    """What a rebuild makes of a study's revisions.

    Attributes:
        revision: the last settled version; None: the study never settled.
        settled: the study holds exactly the instances of `revision`.
    """

    revision: Revision | None
    settled: bool


def choose(revisions: Iterable[Revision], confirmed: frozenset[str], content: str) -> Restoration:
    """Applies the rule of this module.

    Args:
        revisions: all of one study.
        confirmed: object keys of the revisions that have their `.settled`.
        content: names the current instances.
    """
    by_version: dict[int, list[Revision]] = {}
    for revision in revisions:
        by_version.setdefault(revision.version, []).append(revision)

    def best(version: int) -> Revision:
        return max(
            by_version[version],
            key=lambda one: (
                one.object_key in confirmed,
                one.content == content,
                one.settled_at,
                one.object_key,
            ),
        )

    versions = sorted(by_version, reverse=True)
    if not versions:
        return Restoration(None, settled=False)
    latest = best(versions[0])
    if latest.content != content:
        return Restoration(latest, settled=False)
    if latest.object_key in confirmed:
        return Restoration(latest, settled=True)
    return Restoration(best(versions[1]) if len(versions) > 1 else None, settled=False)
