"""What a node can do with staged bytes, and why not more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from isocenter.common.errors import IntegrityError


class Mode(StrEnum):
    """How bytes get from NVMe to where they are used. Fastest first."""

    GDS_NVFS = "gds-nvfs"
    """GPUDirect Storage through the nvidia-fs module: no copy through the CPU."""
    GDS_P2PDMA = "gds-p2pdma"
    """The same through the kernel's own peer-to-peer DMA."""
    KVIKIO_COMPAT = "kvikio-compat"
    """kvikio reads into pinned memory and copies to the device, over several threads."""
    POSIX_PINNED = "posix-pinned"
    """We read into pinned memory, and cupy copies to the device."""
    NUMPY = "numpy"
    """No usable GPU: host memory."""

    @property
    def on_device(self) -> bool:
        return self is not Mode.NUMPY


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a slice of one (MIG), by the UUID that stays when others come and go."""

    index: int
    uuid: str
    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of a probe.

    Attributes:
        mode: the fastest that was seen to work.
        reasons: why each faster mode was not chosen, for people.
        versions: of driver, CUDA, cupy, kvikio, where they are.
        seconds: what the probe took.
    """

    mode: Mode
    reasons: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises IntegrityError."""
        try:
            document = json.loads(text)
            document["mode"] = Mode(document["mode"])
            document["reasons"] = tuple(document["reasons"])
            document["devices"] = tuple(Device(**one) for one in document["devices"])
            return cls(**document)
        except (ValueError, KeyError, TypeError):
            raise IntegrityError("not a verdict") from None
