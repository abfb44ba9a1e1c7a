"""What the sender heard against what the platform holds. Run on a data directory that nobody uses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import retrieve

from isocenter.common.clock import SystemClock
from isocenter.common.engines import Engines
from isocenter.common.errors import IntegrityError, IsocenterError
from isocenter.common.index.ports import Index
from isocenter.common.index.records import SettleState
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.ports import ObjectInfo
from isocenter.common.objects.sealed import Sealed
from isocenter.common.objects.sealing import SealContext
from isocenter.common.objects.vault import Vault
from isocenter.common.settings import PlatformSettings


@dataclass
class Heard:
    """The sender's report: what was acknowledged, study -> SOP Instance UID -> SHA-256 of the data set."""

    studies: dict[str, dict[str, str]] = field(default_factory=dict)
    acknowledgements: int = 0
    refusals: list[int] = field(default_factory=list)
    broken: int = 0

    @property
    def instances(self) -> int:
        return sum(len(study) for study in self.studies.values())


def read_report(path: Path) -> Heard:
    """The whole lines of it: the last may be in the middle of being written."""
    heard = Heard()
    whole, _, _ = path.read_text().rpartition("\n")
    for line in whole.splitlines():
        record = json.loads(line)
        if "sop" in record:
            heard.acknowledgements += 1
            heard.studies.setdefault(record["study"], {})[record["sop"]] = record["sha256"]
        elif "status" in record:
            heard.refusals.append(record["status"])
        else:
            heard.broken += 1
    return heard


@dataclass
class Held:
    """The object store: instance key -> digests of the data sets held under it, and what is damaged."""

    digests: dict[str, set[str]] = field(default_factory=dict)
    per_study: dict[str, set[str]] = field(default_factory=dict)
    objects: int = 0
    corrupt: list[str] = field(default_factory=list)


async def read_store(data_dir: Path) -> Held:
    """Reads every instance whole. `get` checks the payload against the digest recorded when it was written,
    and opens every chunk of it; the data set is hashed again here against the digest that the event carried.
    """
    return await read_engines(Engines.embedded(PlatformSettings(data_dir=data_dir)))


async def read_engines(engines: Engines) -> Held:
    """The same of any store."""
    keys = await engines.open_study_keys(SystemClock())
    try:
        store = await engines.open_store()
        try:
            return await _read_vault(Vault(store, Sealed(keys)))
        finally:
            await store.close()
    finally:
        await keys.close()


async def _read_vault(vault: Vault) -> Held:
    held = Held()
    try:
        async for info in vault.store.list("instances/"):
            held.objects += 1
            await _read_object(vault, info, held)
    except IntegrityError as error:  # after all the others: a trailer cannot be read
        held.corrupt.append(str(error))
    return held


async def _read_object(vault: Vault, info: ObjectInfo, held: Held) -> None:
    study_key, instance_key = info.metadata["study_key"], info.metadata["instance_key"]
    try:
        digest = retrieve.digest(await vault.get(info.key, SealContext(study_key, instance_key)))
    except (IsocenterError, ValueError):
        held.corrupt.append(info.key)
        return
    if digest != info.metadata["content_digest"]:
        held.corrupt.append(info.key)
    held.digests.setdefault(instance_key, set()).add(digest)
    held.per_study.setdefault(study_key, set()).add(instance_key)


def lost(heard: Heard, held: Held, keys: SiteKeys) -> list[str]:
    """Instance keys that were acknowledged and whose bytes are not there."""
    return [
        key
        for study in heard.studies.values()
        for sop, digest in study.items()
        if digest not in held.digests.get(key := keys.instance_key(sop), set())
    ]


async def dump(path: Path) -> list[str]:
    """The whole index as text, in its own comparable form."""
    index = await SqliteIndex.open(path)
    try:
        return [line async for line in index.dump()]
    finally:
        await index.close()


async def settled(path: Path) -> dict[str, tuple[bool, int]]:
    """Study key -> (it has settled, instances counted)."""
    index = await SqliteIndex.open(path)
    try:
        return await states(index)
    finally:
        await index.close()


async def states(index: Index) -> dict[str, tuple[bool, int]]:
    """The same of any index."""
    return {
        study.study_key: (study.state is SettleState.SETTLED and study.version > 0, study.instances)
        async for study in index.studies()
    }


def staged_leftovers(data_dir: Path) -> list[str]:
    """Files in the staging and pending areas that nobody would miss, or that should be gone. None are right
    while nothing is on its way, but empty ones that wait to be written, and second names of objects that the
    journal has named and not yet settled.
    """
    objects = data_dir / "objects"
    found = []
    for path in (objects / "staging").rglob("*"):
        status = path.stat()
        named = status.st_nlink > 1 and not path.suffix
        if path.is_file() and status.st_size and not named:
            found.append(path)
    found.extend(path for path in (objects / "pending").rglob("*") if path.is_file())
    return [str(path.relative_to(objects)) for path in found]
