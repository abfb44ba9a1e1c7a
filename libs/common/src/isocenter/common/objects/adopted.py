"""Objects whose payload lies in an archive of another system: the store holds a reference in its place.

A reference says where the payload is, how long it is, and the SHA-256 of each MiB of it, so that whatever is
read of it is checked. It is sealed under a key of the site: file names are often names of patients, and who
can write to the store cannot make us read anything else. The payload itself is as the archive has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from isocenter.common.errors import IntegrityError, NotFound
from isocenter.common.objects.archives import Archives, Found
from isocenter.common.objects.beside import PlainStaging
from isocenter.common.objects.sealing import NONE

if TYPE_CHECKING:
    from isocenter.common.keys import SiteKeys
    from isocenter.common.objects.ports import Buffer, Last, ObjectInfo, ObjectStore, PutResult, Staging

CHUNK: Final = 1 << 20
"""What is read and checked at least."""
_NONCE: Final = 12
_CACHED: Final = 1024
_MARK: Final = "adopted"
_SIZE: Final = "adopted_size"
_DIGEST: Final = "adopted_sha256"
_KEPT: Final = ("received_at", "sender", "protocol", "transfer_id")
"""What stays true of an instance when its payload moves into the store."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a payload is."""

    root: str
    found: Found
    chunks: tuple[bytes, ...]
    """SHA-256 of each `CHUNK` bytes; of the rest the last one."""

    def pack(self, cipher: AESGCM, key: str) -> bytes:
        document = json.dumps(
            [self.root, self.found.path, self.found.size, self.found.tag, b"".join(self.chunks).hex()]
        )
        nonce = os.urandom(_NONCE)
        return nonce + cipher.encrypt(nonce, document.encode("utf-8", "surrogateescape"), key.encode())

    @classmethod
    def unpack(cls, cipher: AESGCM, key: str, data: bytes) -> Self:
        """Raises IntegrityError: it is not ours, or of another object."""
        try:
            document = cipher.decrypt(data[:_NONCE], data[_NONCE:], key.encode())
        except (InvalidTag, ValueError):
            raise IntegrityError("a reference does not open", object_key=key) from None
        root, path, size, tag, chunks = json.loads(document.decode("utf-8", "surrogateescape"))
        digests = bytes.fromhex(chunks)
        return cls(
            root, Found(path, size, tag), tuple(digests[n : n + 32] for n in range(0, len(digests), 32))
        )


class AdoptedStore:
    """An `ObjectStore` in front of another one: references in it look like the objects they refer to."""

    def __init__(self, store: ObjectStore, archives: Archives, keys: SiteKeys) -> None:
        self._store = store
        self.archives = archives
        self._cipher = AESGCM(keys.derived("adopted"))
        self._known: dict[str, Reference | None] = {}
        self.replacing = False
        """Whether an object that is stored takes the place of a reference to the same content."""

    def stage(self) -> Staging:
        return _Storing(self, self._store.stage())

    def refer(self, root: str, found: Found) -> Staging:
        """Begins a reference: the payload is written to it as to any staging, and only its digests stay."""
        return _Referring(self._store.stage(), self._cipher, root, found)

    async def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> PutResult:
        return _shown_result(await self._store.put(key, data, metadata))

    async def get(self, key: str) -> bytes:
        info = await self.head(key)
        return await self.get_range(key, 0, info.size)

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        reference = await self._reference(key)
        if reference is None:
            return await self._store.get_range(key, start, end)
        start, end = max(0, start), min(end, reference.found.size)
        if start >= end:
            return b""
        first = start // CHUNK
        data = memoryview(
            await self.archives[reference.root].read(
                reference.found, first * CHUNK, min(-(-end // CHUNK) * CHUNK, reference.found.size)
            )
        )
        for number, at in enumerate(range(0, len(data), CHUNK), first):
            if await _digest(data[at : at + CHUNK]) != reference.chunks[number]:
                raise IntegrityError("an adopted file was changed", object_key=key)
        wanted = bytes(data[start - first * CHUNK : end - first * CHUNK])
        if len(wanted) != end - start:
            raise IntegrityError("an adopted file is shorter than it was", object_key=key)
        return wanted

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        reference = await self._reference(key)
        if reference is None:
            async for piece in self._store.stream(key, start, end):
                yield piece
            return
        position = max(0, start)
        stop = reference.found.size if end is None else min(end, reference.found.size)
        while position < stop:
            piece_end = min(stop, (position // CHUNK + 1) * CHUNK)
            yield await self.get_range(key, position, piece_end)
            position = piece_end

    async def head(self, key: str) -> ObjectInfo:
        info = await self._store.head(key)
        if _MARK not in info.metadata:
            self._remember(key, None)
        return _shown(info)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in self._store.list(prefix, start_after=start_after):
            yield _shown(info)

    async def delete(self, key: str) -> None:
        self._known.pop(key, None)
        await self._store.delete(key)

    async def confirm(self, keys: Iterable[str]) -> None:
        await self._store.confirm(keys)

    async def pending(self) -> AsyncIterator[ObjectInfo]:
        async for info in self._store.pending():
            yield _shown(info)

    async def check(self) -> None:
        """Of the store. An archive that is gone makes its own objects unreadable, and nothing else."""
        await self._store.check()

    async def close(self) -> None:
        await self._store.close()

    async def make_room(self, key: str) -> dict[str, str]:
        """Removes a reference that is replaced; returns what its successor says of itself as it did."""
        try:
            info = await self._store.head(key)
        except NotFound:
            return {}
        if _MARK not in info.metadata:
            return {}
        await self.delete(key)
        return {name: info.metadata[name] for name in _KEPT if name in info.metadata}

    async def _reference(self, key: str) -> Reference | None:
        if key not in self._known:
            info = await self._store.head(key)
            found = None
            if _MARK in info.metadata:
                found = Reference.unpack(self._cipher, key, await self._store.get(key))
            self._remember(key, found)
        return self._known[key]

    def _remember(self, key: str, reference: Reference | None) -> None:
        while len(self._known) >= _CACHED:
            self._known.pop(next(iter(self._known)))
        self._known[key] = reference


class _Storing(PlainStaging):
    """A staging of the store behind."""

    def __init__(self, store: AdoptedStore, staging: Staging) -> None:
        self._store = store
        self._staging = staging

    async def __aenter__(self) -> Self:
        await self._staging.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._staging.__aexit__(kind, error, trace)

    async def write(self, data: Buffer) -> None:
        await self._staging.write(data)

    async def extend(self, make: Callable[[], Buffer]) -> None:
        await self._staging.extend(make)

    async def conclude(self, make: Callable[[], Last], *, pending: bool = False) -> PutResult:
        if self._store.replacing:
            return await super().conclude(make, pending=pending)
        return _shown_result(await self._staging.conclude(make, pending=pending))

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        if self._store.replacing:
            metadata = {**metadata, **await self._store.make_room(key)}
        return _shown_result(await self._staging.commit(key, metadata, pending=pending))


class _Referring(PlainStaging):
    """Takes a payload and keeps its digests."""

    def __init__(self, staging: Staging, cipher: AESGCM, root: str, found: Found) -> None:
        self._staging = staging
        self._cipher = cipher
        self._root = root
        self._found = found
        self._whole = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._chunks: list[bytes] = []
        self._size = 0

    async def __aenter__(self) -> Self:
        await self._staging.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._staging.__aexit__(kind, error, trace)

    async def write(self, data: Buffer) -> None:
        view = memoryview(data)
        await asyncio.to_thread(self._whole.update, view)
        while view:
            piece = view[: CHUNK - self._size % CHUNK]
            self._chunk.update(piece)
            self._size += len(piece)
            view = view[len(piece) :]
            if self._size % CHUNK == 0:
                self._end_chunk()

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        """Raises IntegrityError: the payload is not as long as the file that was found."""
        if self._size != self._found.size:
            raise IntegrityError("a file changed while it was read")
        if self._size % CHUNK:
            self._end_chunk()
        reference = Reference(self._root, self._found, tuple(self._chunks))
        await self._staging.write(reference.pack(self._cipher, key))
        facts = {_MARK: "1", _SIZE: str(self._size), _DIGEST: self._whole.hexdigest(), "sealing": NONE}
        return _shown_result(await self._staging.commit(key, {**metadata, **facts}, pending=pending))

    def _end_chunk(self) -> None:
        self._chunks.append(self._chunk.digest())
        self._chunk = hashlib.sha256()


def with_archives(store: ObjectStore, archives: Archives, keys: SiteKeys) -> ObjectStore:
    """The store itself, where a site has adopted nothing."""
    return AdoptedStore(store, archives, keys) if archives else store


def _shown(info: ObjectInfo) -> ObjectInfo:
    if _MARK not in info.metadata:
        return info
    return replace(info, size=int(info.metadata[_SIZE]), sha256=info.metadata[_DIGEST])


def _shown_result(result: PutResult) -> PutResult:
    return replace(result, info=_shown(result.info))


async def _digest(data: memoryview) -> bytes:
    return (await asyncio.to_thread(hashlib.sha256, data)).digest()
