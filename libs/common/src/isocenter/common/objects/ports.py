"""Where bytes live: the contract every object store keeps, and its conformance suite tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from isocenter.common.errors import Permanent

Buffer = bytes | bytearray | memoryview


class ObjectLocked(Permanent):
    """Retention or a legal hold refuses: nothing is wrong, and a retry would be refused too."""

    code = "object-locked"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as the store sees it.

    Attributes:
        key: opaque name; never a UID, never PHI.
        size: payload length in bytes.
        sha256: lower-case hex digest of the payload, taken while it was written.
        metadata: small, ASCII, no PHI: what a rebuild of the index needs and the bytes do not say.
        stored_at: when the object became durable.
    """

    key: str
    size: int
    sha256: str
    metadata: Mapping[str, str]
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class PutResult:
    """Outcome of a put.

    Attributes:
        info: the object that is stored under the key now: the first one ever put.
        created: False when the key was there already; the store then kept the first content.
        identical: the content offered equals the content kept.
        healed: what was under the key did not hash to its digest; it was set aside for this content.
    """

    info: ObjectInfo
    created: bool
    identical: bool
    healed: bool = False


class Last(NamedTuple):
    """What ends an object: its last bytes, its key, its metadata."""

    data: Buffer
    key: str
    metadata: Mapping[str, str]


class Staging(Protocol):
    """Bytes on their way into the store: invisible until `commit` returns, gone if it never does.

    Use as an async context manager: leaving the block without `commit` discards the bytes.
    """

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def write(self, data: Buffer) -> None:
        """Appends. The buffer may be reused by the caller once this returns. Memory does not grow with the
        object.

        Raises:
            StoreFull, StoreUnavailable
        """
        ...

    async def extend(self, make: Callable[[], Buffer]) -> None:
        """Appends what `make` returns. It is called in the thread that writes, so that bytes which have to be
        worked on first are handed over once; what it returns is used before this returns.

        Raises:
            StoreFull, StoreUnavailable, and what `make` raises
        """
        ...

    async def conclude(self, make: Callable[[], Last], *, pending: bool = False) -> PutResult:
        """`extend` and `commit` in one, for a key that only the last bytes decide."""
        ...

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        """Makes the object visible and durable under `key`, whole or not at all, or keeps what is there
        already.

        Args:
            key: where it becomes visible.
            metadata: small and ASCII, without PHI.
            pending: something must follow, an event that announces the object. Until `confirm` the store
                remembers it, and `ObjectStore.pending` tells a later process what this one left undone.

        After return it survives power loss: data, metadata and directory entry.

        Raises:
            StoreFull, StoreUnavailable
        """
        ...


class ObjectStore(Protocol):
    """put never overwrites; get never returns half an object."""

    def stage(self) -> Staging:
        """Begins an object whose key is not known yet."""
        ...

    async def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> PutResult: ...

    async def get(self, key: str) -> bytes:
        """The whole payload.

        Raises:
            NotFound
        """
        ...

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Payload bytes [start, end), cut at the object's end; empty beyond it.

        Raises:
            NotFound
        """
        ...

    def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Payload bytes [start, end) in pieces of bounded size. Raises NotFound at the first step."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Raises NotFound."""
        ...

    def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects in ascending key order."""
        ...

    async def delete(self, key: str) -> None:
        """Removes the object. Deleting what is not there is no error.

        Raises:
            ObjectLocked: it is under retention or legal hold.
        """
        ...

    async def confirm(self, keys: Iterable[str]) -> None:
        """What had to follow a pending commit has followed. Keys that are not pending are ignored.

        Need not be durable: an object that is pending again after a crash is announced again.
        """
        ...

    def pending(self) -> AsyncIterator[ObjectInfo]:
        """Objects committed as pending by processes that are gone, and never confirmed."""
        ...

    async def check(self) -> None:
        """Proves that the store can write, sync and read now. Raises StoreUnavailable."""
        ...

    async def close(self) -> None: ...
