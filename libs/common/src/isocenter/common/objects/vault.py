"""Every payload of patient data goes into and out of the store through here, sealed.

Callers see plaintext and plaintext offsets only. Switching sealing on changes no line of theirs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Final, Self

from isocenter.common.errors import IntegrityError
from isocenter.common.objects.ports import ObjectInfo, ObjectStore, PutResult, Staging
from isocenter.common.objects.sealing import SealContext, Sealing

PIECE: Final = 1 << 20


class Vault:
    """An object store behind a sealing."""

    def __init__(self, store: ObjectStore, sealing: Sealing) -> None:
        self.store = store
        self.sealing = sealing

    def stage(self, context: SealContext) -> VaultStaging:
        """Begins an object. Use as an async context manager, like `Staging`."""
        return VaultStaging(self.store.stage(), self.sealing, context)

    async def reader(self, key: str, context: SealContext) -> VaultReader:
        """Raises NotFound, StoreUnavailable."""
        return self.reader_of(await self.store.head(key), context)

    def reader_of(self, info: ObjectInfo, context: SealContext) -> VaultReader:
        """The same for an object whose head is known already."""
        return VaultReader(self.store, self.sealing, context, info)

    async def put(
        self, key: str, context: SealContext, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> PutResult:
        """Seals and stores a small document."""
        async with self.stage(context) as staging:
            await staging.write(data)
            return await staging.commit(key, metadata or {})

    async def get(self, key: str, context: SealContext) -> bytes:
        """The whole plaintext of a small document.

        Raises:
            NotFound, StoreUnavailable
            IntegrityError: the stored bytes are not what was sealed.
        """
        stored = await self.store.get(key)
        size = self.sealing.plain_size(len(stored))
        start, end = self.sealing.stored_range(0, size)
        head = stored[: self.sealing.head_bytes]
        return self.sealing.open_range(context, head + stored[start:end], 0, size)


class VaultStaging:
    """Plaintext in; sealed bytes go to the store. `plain_size` counts what was written."""

    def __init__(self, staging: Staging, sealing: Sealing, context: SealContext) -> None:
        self._staging = staging
        self._name = sealing.name
        self._writer = sealing.seal(context)
        self.plain_size = 0

    async def __aenter__(self) -> Self:
        await self._staging.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._staging.__aexit__(kind, error, trace)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises StoreFull, StoreUnavailable."""
        self.plain_size += len(data)
        if stored := self._writer.update(data):
            await self._staging.write(stored)

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        """Durable under `key` on return; metadata gets `sealing`. Raises StoreFull, StoreUnavailable.

        `pending`: see `Staging.commit`.
        """
        if stored := self._writer.finish():
            await self._staging.write(stored)
        return await self._staging.commit(key, {**metadata, "sealing": self._name}, pending=pending)


class VaultReader:
    """Plaintext of one object, by plaintext offsets."""

    def __init__(self, store: ObjectStore, sealing: Sealing, context: SealContext, info: ObjectInfo) -> None:
        self.info = info
        """The object as the store has it: `size` there counts stored bytes."""
        self.size = sealing.plain_size(info.size)
        self._store = store
        self._sealing = sealing
        self._context = context
        self._head: bytes | None = None if sealing.head_bytes else b""

    async def read(self, start: int, end: int) -> bytes:
        """Plaintext [start, end), cut at the object's end.

        Raises:
            NotFound: the object was deleted meanwhile.
            IntegrityError: the stored bytes are not what was sealed, or there are too few.
        """
        start, end = max(0, start), min(end, self.size)
        if start >= end:
            return b""
        if self._head is None:
            self._head = await self._store.get_range(self.info.key, 0, self._sealing.head_bytes)
        stored = await self._store.get_range(self.info.key, *self._sealing.stored_range(start, end))
        plain = self._sealing.open_range(self._context, self._head + stored, start, end)
        if len(plain) != end - start:
            raise IntegrityError("object is shorter than it was", key=self.info.key)
        return plain

    async def stream(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Plaintext [start, end) in pieces cut at multiples of 1 MiB, so that chunks are opened once."""
        position = max(0, start)
        stop = self.size if end is None else min(end, self.size)
        while position < stop:
            piece = min(stop, (position // PIECE + 1) * PIECE)
            yield await self.read(position, piece)
            position = piece
