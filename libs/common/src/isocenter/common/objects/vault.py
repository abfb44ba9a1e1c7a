"""Every payload of patient data goes into and out of the store through here, sealed.

Callers see plaintext and plaintext offsets only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from isocenter.common.errors import IntegrityError, StoreUnavailable
from isocenter.common.objects.beside import beside
from isocenter.common.objects.ports import Buffer, Last, ObjectInfo, ObjectStore, PutResult, Staging
from isocenter.common.objects.sealing import SealContext, Sealing, SealReader, SealWriter

PIECE: Final = 1 << 20

Opening = Callable[[bytes | memoryview, bytes | memoryview, int, int], bytes]

_OFF_LOOP: Final = 512 << 10
"""From this size on sealing may take longer than the hop to a thread, which does without the GIL."""


class Vault:
    """An object store behind a sealing."""

    def __init__(self, store: ObjectStore, sealing: Sealing) -> None:
        self.store = store
        self.sealing = sealing

    def stage(self, context: SealContext) -> VaultStaging:
        """Begins an object. Use as an async context manager, like `Staging`; entering it fetches the key."""
        return VaultStaging(self.store.stage(), self.sealing, context)

    async def reader(self, key: str, context: SealContext) -> VaultReader:
        """Raises NotFound, StoreUnavailable; IntegrityError: it has a length that no such object can have."""
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
        info = await self.store.head(key)
        reader = await self.sealing.reader(context, info)
        stored = memoryview(await self.store.get(key))
        if len(stored) != info.size:
            raise IntegrityError("object changed while it was read", key=key)
        size = self.sealing.plain_size(info)
        start, end = reader.stored_range(0, size)
        return await _aside(reader.open_range, size, stored[: reader.head_bytes], stored[start:end], 0, size)


class VaultStaging:
    """Plaintext in; sealed bytes go to the store. `plain_size` counts what was written."""

    def __init__(self, staging: Staging, sealing: Sealing, context: SealContext) -> None:
        self._staging = staging
        self._sealing = sealing
        self._context = context
        self._writer: SealWriter | None = None
        self.plain_size = 0

    async def __aenter__(self) -> Self:
        """Raises what fetching the study's key raises."""
        self._writer = await self._sealing.writer(self._context)
        await self._staging.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._staging.__aexit__(kind, error, trace)

    async def write(self, data: Buffer) -> None:
        """Raises StoreFull, StoreUnavailable."""
        if len(data) >= _OFF_LOOP:
            await self.extend(lambda: (data,))
            return
        self.plain_size += len(data)
        if stored := self._require_writer().update(data):
            await self._staging.write(stored)

    async def extend(self, make: Callable[[], Sequence[Buffer]]) -> None:
        """Appends what `make` returns, which is called in a thread: see `Staging.extend`."""
        writer = self._require_writer()

        def stored() -> Buffer:
            data = make()
            self.plain_size += sum(map(len, data))
            return writer.update(*data)

        await self._staging.extend(stored)

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        """Durable under `key` on return; metadata gets `sealing`. Raises StoreFull, StoreUnavailable.

        `pending`: see `Staging.commit`.
        """
        return await self.conclude(lambda: ((), key, metadata), pending=pending)

    async def conclude(
        self, make: Callable[[], tuple[Sequence[Buffer], str, Mapping[str, str]]], *, pending: bool = False
    ) -> PutResult:
        """The same for a key that only the last bytes decide: `make` returns them, the key and the metadata.
        It is called in a thread.
        """
        writer = self._require_writer()

        def last() -> Last:
            data, key, metadata = make()
            self.plain_size += sum(map(len, data))
            return Last(writer.finish(*data), key, {**metadata, "sealing": self._sealing.name})

        return await self._staging.conclude(last, pending=pending)

    def _require_writer(self) -> SealWriter:
        if self._writer is None:
            raise StoreUnavailable("staging was not entered")
        return self._writer


class VaultReader:
    """Plaintext of one object, by plaintext offsets."""

    def __init__(self, store: ObjectStore, sealing: Sealing, context: SealContext, info: ObjectInfo) -> None:
        """Raises IntegrityError: it has a length that no such object can have."""
        self.info = info
        """The object as the store has it: `size` there counts stored bytes."""
        self.size = sealing.plain_size(info)
        self._store = store
        self._sealing = sealing
        self._context = context
        self._reader: SealReader | None = None
        self._head: bytes | None = None

    async def read(self, start: int, end: int) -> bytes:
        """Plaintext [start, end), cut at the object's end. Reads the chunks that hold it, and the head once.

        Raises:
            NotFound: the object was deleted meanwhile.
            IntegrityError: the stored bytes are not what was sealed, or there are too few.
        """
        start, end = max(0, start), min(end, self.size)
        if start >= end:
            return b""
        if self._reader is None:
            self._reader = await self._sealing.reader(self._context, self.info)
        stored = await self._stored(self._reader, *self._reader.stored_range(start, end))
        plain = await _aside(self._reader.open_range, end - start, self._head or b"", stored, start, end)
        if len(plain) != end - start:
            raise IntegrityError("object is shorter than it was", key=self.info.key)
        return plain

    async def _stored(self, reader: SealReader, start: int, end: int) -> bytes | memoryview:
        """Where the range follows the head, one request brings both."""
        size = reader.head_bytes
        if self._head is not None or not size:
            return await self._store.get_range(self.info.key, start, end)
        if start == size:
            both = memoryview(await self._store.get_range(self.info.key, 0, end))
            self._head = bytes(both[:size])
            return both[size:]
        self._head = await self._store.get_range(self.info.key, 0, size)
        return await self._store.get_range(self.info.key, start, end)

    async def stream(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Plaintext [start, end) in pieces cut at multiples of 1 MiB, so that chunks are opened once."""
        position = max(0, start)
        stop = self.size if end is None else min(end, self.size)
        while position < stop:
            piece = min(stop, (position // PIECE + 1) * PIECE)
            yield await self.read(position, piece)
            position = piece


async def _aside(
    call: Opening, size: int, head: bytes | memoryview, stored: bytes | memoryview, start: int, end: int
) -> bytes:
    if size < _OFF_LOOP:
        return call(head, stored, start, end)
    return await beside(lambda: call(head, stored, start, end))
