"""Encryption at rest: every payload of patient data passes through a `Sealing`.

Offsets outside this package are always *plaintext* offsets; sizes in `ObjectInfo` count stored bytes. How an
object is sealed stands in its metadata as `sealing`, so that objects from before sealing stay readable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from isocenter.common.errors import Misconfigured
from isocenter.common.objects.ports import ObjectInfo

NONE: Final = "none"
"""How objects say that they are not sealed."""

Buffer = bytes | bytearray | memoryview


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
    """Plaintext in, bytes to store out. What a call returns may be overwritten by the next one."""

    def update(self, *data: Buffer) -> Buffer:
        """May be empty while a chunk fills."""
        ...

    def finish(self, *data: Buffer) -> Buffer:
        """The last bytes to store, those of `data` among them."""
        ...


class SealReader(Protocol):
    """Opens ranges of one object."""

    head_bytes: int
    """Length of what stands before the first chunk and is needed to open any range."""

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        """The stored bytes that hold plaintext [start, end), a range within the object that is not empty."""
        ...

    def open_range(self, head: Buffer, stored: Buffer, start: int, end: int) -> bytes:
        """Plaintext [start, end) from the object's first `head_bytes` and the bytes at `stored_range`.

        Raises:
            IntegrityError: the bytes are not what was sealed. Not one of them is returned.
        """
        ...


class Sealing(Protocol):
    name: str
    """Recorded in the metadata of new objects as `sealing`."""

    async def writer(self, context: SealContext) -> SealWriter:
        """Raises what fetching the study's key raises."""
        ...

    async def reader(self, context: SealContext, info: ObjectInfo) -> SealReader:
        """Raises what fetching the study's key raises, and IntegrityError for a length that none can have."""
        ...

    def plain_size(self, info: ObjectInfo) -> int:
        """Raises IntegrityError: it has a length that no such object can have."""
        ...

    async def check(self) -> None:
        """Raises KeysUnavailable: a study that is new now would get no key."""
        ...


class Unsealed:
    """No encryption: bytes are stored as they came. For tests, and for objects from before sealing."""

    name = NONE

    async def writer(self, context: SealContext) -> SealWriter:
        return _Passthrough()

    async def reader(self, context: SealContext, info: ObjectInfo) -> SealReader:
        self.plain_size(info)
        return PlainReader()

    def plain_size(self, info: ObjectInfo) -> int:
        if sealing_of(info) != NONE:
            raise Misconfigured("an object is sealed, and this process has no keys", object_key=info.key)
        return info.size

    async def check(self) -> None:
        pass


class PlainReader:
    """Of an object that is not sealed: nothing proves that its bytes are those that were stored."""

    head_bytes = 0

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        return start, end

    def open_range(self, head: Buffer, stored: Buffer, start: int, end: int) -> bytes:
        return bytes(stored)


class _Passthrough:
    def update(self, *data: Buffer) -> Buffer:
        return data[0] if len(data) == 1 else b"".join(data)

    def finish(self, *data: Buffer) -> Buffer:
        return self.update(*data)


def sealing_of(info: ObjectInfo) -> str:
    return info.metadata.get("sealing", NONE)
