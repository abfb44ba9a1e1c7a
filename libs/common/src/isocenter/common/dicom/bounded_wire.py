"""What `bounded` and its child say to each other: frames over a pair of pipes, little endian."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

FRAME: Final = struct.Struct("<BI")
"""Kind and length of what follows."""
ITEM: Final = struct.Struct("<QI")
"""Of an instance in a batch: size of its object, length of the beginning that follows."""
RANGE: Final = struct.Struct("<QQ")
RESULT: Final = struct.Struct("<II")
"""Lengths of the JSON text and of the metadata that follow; the rest is the frame index."""


class Kind(IntEnum):
    """What a frame is. From the parent: BATCH, BYTES, NO_BYTES. From the child: the others."""

    BATCH = 1
    BYTES = 2
    NO_BYTES = 3
    """The bytes cannot be had; the instance is given up."""
    DESCRIBED = 4
    REFUSED = 5
    GIVEN_UP = 6
    READ = 7
    READY = 8
    """The first of all: it has started, and its limits hold."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one child may take.

    Attributes:
        memory_bytes: address space, the interpreter included.
        cpu_seconds: for one instance.
        tags: the top-level attributes that are answered, beside the metadata, which always are whole.
        nice: how far behind the parent it stands where both want the processor.
    """

    memory_bytes: int = 1 << 30
    cpu_seconds: float = 10.0
    tags: tuple[str, ...] = ()
    nice: int = 5
