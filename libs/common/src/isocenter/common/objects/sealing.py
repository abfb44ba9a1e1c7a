"""The seam for encryption at rest: every payload of patient data passes through a `Sealing`.

Ingest writes `Sealing.seal(...)`'s output and readers go through `Sealing.open(...)`, so that switching
sealing on changes no other line. Offsets outside this module are always *plaintext* offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SealContext:
    """What a sealed object is bound to: moved elsewhere it does not open.

    Attributes:
        study_key: of the study whose key seals it.
        object_id: what the object is, known before its first byte: the instance key of an instance, the
            object key of any other document.
    """

    study_key: str
    object_id: str


class SealWriter(Protocol):
    def update(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """Plaintext in, bytes to store out (may be empty while a chunk fills)."""
        ...

    def finish(self) -> bytes:
        """The last bytes to store."""
        ...


class Sealing(Protocol):
    name: str
    """Recorded in the object's metadata as `sealing`."""
    head_bytes: int
    """Length of what stands before the first chunk and is needed to open any range (salt, commitment)."""

    def seal(self, context: SealContext) -> SealWriter: ...

    def plain_size(self, stored_size: int) -> int: ...

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        """The stored bytes that hold plaintext [start, end)."""
        ...

    def open_range(self, context: SealContext, stored: bytes, start: int, end: int) -> bytes:
        """Plaintext [start, end).

        `stored` is the first `head_bytes` of the object, followed by the bytes at `stored_range(start, end)`.

        Raises:
            IntegrityError: the bytes are not what was sealed.
        """
        ...


class Unsealed:
    """No encryption: bytes are stored as they came. Named in `isocenter doctor` and the README until sealing
    lands.
    """

    name = "none"
    head_bytes = 0

    def seal(self, context: SealContext) -> SealWriter:
        return _Passthrough()

    def plain_size(self, stored_size: int) -> int:
        return stored_size

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        return start, end

    def open_range(self, context: SealContext, stored: bytes, start: int, end: int) -> bytes:
        return stored


class _Passthrough:
    def update(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        return data

    def finish(self) -> bytes:
        return b""
