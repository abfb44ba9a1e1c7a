"""Settings of the GPU stager: `ISOCENTER_GPU_STAGER_*`. All periods in seconds."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_settings import SettingsConfigDict

from isocenter.common.settings import ServiceSettings
from isocenter.gpu_stager.cache.ledger import Limits

Seconds = Annotated[float, Field(gt=0, le=7 * 86_400)]
Share = Annotated[float, Field(gt=0, le=1)]


def _node() -> str:
    """This machine's name, without what an event may not hold."""
    name = socket.gethostname().partition(".")[0]
    kept = "".join(each if each.isalnum() or each in "._-" else "-" for each in name)
    return kept[:64] or "node"


def _paths(text: str) -> str:
    if any(not part.strip() for part in text.split(",")) and text:
        raise ValueError
    return text


class GpuStagerSettings(ServiceSettings):
    """Defaults suit a GPU node with one local NVMe disk under `cache_dirs`."""

    model_config = SettingsConfigDict(env_prefix="ISOCENTER_GPU_STAGER_")

    node: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(default_factory=_node)
    """What events call this node; a scheduler places jobs by it. None: the machine's name."""
    cache_dirs: Annotated[str, AfterValidator(_paths)] = ""
    """Folders for staged volumes, comma separated, one for each disk; empty: `staged` in the data directory.
    They hold patients' pixels: encrypt the disks, or let them be local and die with the node.
    """
    socket: Path | None = None
    """Of the node agent; None: `run/stager.sock` in the data directory."""
    quota_bytes: Annotated[int, Field(ge=0)] = 0
    """That staged volumes may take together; 0: half of what the disks have."""
    high: Share = 0.90
    """Of the quota: above it what is used least goes,"""
    low: Share = 0.80
    """until this is reached."""
    min_free: Annotated[float, Field(ge=0, lt=1)] = 0.10
    """Of each disk, that stays free."""
    largest: Share = 0.25
    """Of the quota, that one series may take."""
    prefetch_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Of the quota, that series which nobody has asked for may take together."""
    prefetch: Annotated[str, StringConstraints(pattern=r"^([A-Z0-9]{2,16}(,[A-Z0-9]{2,16})*|none)$")] = (
        "CT,MR,PT,NM"
    )
    """Modalities whose series are staged as soon as their study has settled, comma separated; `none`."""
    priors: Annotated[int, Field(ge=0, le=10)] = 2
    """Comparable earlier studies of the patient that are staged with a settled one."""
    grace_seconds: Annotated[float, Field(ge=0)] = 60.0
    """A series stays so long after its last use."""
    lease_seconds: Seconds = 60.0
    """What a lease lasts that its holder does not renew."""
    soft_pin_seconds: Seconds = 1800.0
    requests: Annotated[int, Field(ge=1, le=256)] = 32
    """Reads of the object store at the same time."""
    decoders: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads that decode; 0: one for each core."""
    scrub_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Between two series whose checksums are looked at again; 0: never."""
    probe_seconds: Seconds = 15.0
    """What finding out about GPU and driver may take; what hangs longer is not used."""

    def folders(self, data_dir: Path) -> list[Path]:
        named = [Path(part.strip()) for part in self.cache_dirs.split(",") if part.strip()]
        return named or [data_dir / "staged"]

    def limits(self, disk_bytes: int) -> Limits:
        """Of the cache on disks of so many bytes together."""
        return Limits(
            quota_bytes=self.quota_bytes or disk_bytes // 2,
            high=self.high,
            low=min(self.low, self.high),
            min_free=self.min_free,
            largest=self.largest,
            prefetch=self.prefetch_share,
            grace_seconds=self.grace_seconds,
            lease_seconds=self.lease_seconds,
            soft_pin_seconds=self.soft_pin_seconds,
        )

    @property
    def prefetched(self) -> frozenset[str]:
        return frozenset() if self.prefetch == "none" else frozenset(self.prefetch.split(","))
