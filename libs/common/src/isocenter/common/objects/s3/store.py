"""Objects in an S3 bucket: the first content of a key stays, whatever the server makes of If-None-Match.

What is promised, and where:

* Acknowledged is durable: `commit` returns after the server has answered for the object and, if it is
  pending, for the marker that lists it.
* Whole or not at all: every request's signature covers the SHA-256 of its body, and multipart uploads become
  visible at their end. `get`, and `stream` of a whole object, hash what they read.
* First content stays. In a bucket with versions always, see `first`. Without versions where the server
  enforces `If-None-Match: *` (a store without both is refused), for objects up to `S3Limits.single`; of two
  processes that finish a larger one under one key in the same moment the later one may win. Keys are content
  addresses, so that the two differ at most in their file meta information.
* With versions, delete markers and versions that strangers add hide and change nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Self

from isocenter.common.clock import Clock, SystemClock
from isocenter.common.errors import IntegrityError, NotFound, StoreUnavailable, Transient
from isocenter.common.objects.keys import check_key, check_prefix
from isocenter.common.objects.ports import ObjectInfo, PutResult
from isocenter.common.objects.s3.capabilities import Capabilities, ask, remove_unfinished
from isocenter.common.objects.s3.content import PIECE, Budget, Content
from isocenter.common.objects.s3.first import FirstVersions
from isocenter.common.objects.s3.headers import CHECK, OBJECTS, decode
from isocenter.common.objects.s3.listing import Listing
from isocenter.common.objects.s3.locks import Locks
from isocenter.common.objects.s3.markers import Markers
from isocenter.common.objects.s3.placing import SPAN, Placing
from isocenter.common.objects.s3.staging import S3Staging
from isocenter.common.objects.s3.wire import Found, S3Limits, Wire
from isocenter.common.settings import S3Settings

if TYPE_CHECKING:
    from isocenter.common.telemetry.metrics import Metrics


class S3ObjectStore:
    """An `ObjectStore` in one bucket. Any number of processes may share it. Use `open`."""

    def __init__(
        self, wire: Wire, capabilities: Capabilities, settings: S3Settings, clock: Clock | None = None
    ) -> None:
        versioned = capabilities.versioned
        self.capabilities = capabilities
        self.wire = wire
        self.scratch = settings.scratch_dir
        self.budget = Budget(wire.limits.buffers)
        self.first = FirstVersions(wire, versioned=versioned)
        self.markers = Markers(wire, versioned=versioned)
        self.placing = Placing(wire, self.first, clock or SystemClock(), versioned=versioned)
        self.listing = Listing(wire, self.placing, versioned=versioned)
        self.locks = Locks(wire, self.first, versioned=versioned)
        self._closed = False

    @classmethod
    async def open(
        cls, settings: S3Settings, *, clock: Clock | None = None, limits: S3Limits | None = None
    ) -> Self:
        """Asks what the bucket can do, and removes unfinished uploads of long ago.

        Raises:
            Misconfigured: no bucket, no access, suspended versioning, or a server that can neither keep
                versions nor look before it writes.
            StoreUnavailable, StoreFull
        """
        wire = Wire(settings, limits or S3Limits())
        try:
            capabilities = await ask(wire)
            await remove_unfinished(wire)
        except BaseException:
            await wire.close()
            raise
        return cls(wire, capabilities, settings, clock)

    def report_to(self, metrics: Metrics) -> None:
        """Counts requests and failures there from now on."""
        self.wire.metrics = metrics

    def stage(self) -> S3Staging:
        content = Content(self.scratch, self.wire.limits.buffer, self.budget)
        return S3Staging(content, self.placing, self.markers, self._require_open)

    async def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> PutResult:
        async with self.stage() as staging:
            await staging.write(data)
            return await staging.commit(key, metadata or {})

    async def get(self, key: str) -> bytes:
        """The whole payload, checked. Raises NotFound, IntegrityError, StoreUnavailable."""
        found, data = await self._read(key, 0, None)
        info, _ = decode(key, found.size, found.headers)
        digest = await asyncio.to_thread(hashlib.sha256, data) if len(data) > PIECE else hashlib.sha256(data)
        if len(data) != info.size or digest.hexdigest() != info.sha256:
            self.first.forget(key)  # somebody may have healed it
            raise IntegrityError("object does not hash to its digest", key=key)
        return data

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Payload bytes [start, end). Not checked against the digest, which covers the whole."""
        start = max(0, start)
        if start >= end:
            await self.head(key)
            return b""
        found, data = await self._read(key, start, end)
        decode(key, found.size, found.headers)
        return data

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Payload bytes [start, end) in pieces of at most 1 MiB; the next request is under way meanwhile.

        Raises:
            NotFound, StoreUnavailable
            IntegrityError: a stream of the whole object does not hash to its digest; the last piece is
            withheld.
        """
        kept = await self.placing.find(check_key(key))
        start = max(0, start)
        stop = kept.info.size if end is None else min(end, kept.info.size)
        whole = start == 0 and stop == kept.info.size
        digest = hashlib.sha256()
        held = b""
        async with aclosing(self._spans(key, kept.version, start, stop)) as spans:
            async for span in spans:
                if whole:
                    await asyncio.to_thread(digest.update, span)
                for position in range(0, len(span), PIECE):
                    if held:
                        yield held
                    held = span[position : position + PIECE]
        if whole and digest.hexdigest() != kept.info.sha256:
            self.first.forget(key)
            raise IntegrityError("object does not hash to its digest", key=key)
        if held:
            yield held

    async def head(self, key: str) -> ObjectInfo:
        """Raises NotFound, IntegrityError, StoreUnavailable."""
        return (await self.placing.find(check_key(key))).info

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects in ascending key order; one request for each, many in flight: a listing has no metadata.

        Raises:
            IntegrityError: at the very end, if some were not written by this store: they hide no sound ones.
        """
        damaged: list[str] = []
        async with aclosing(self.listing.infos(check_prefix(prefix), start_after, damaged)) as infos:
            async for info in infos:
                yield info
        if damaged:
            raise IntegrityError("objects with damaged headers", count=len(damaged), first=damaged[0])

    async def delete(self, key: str) -> None:
        """Every version of it, and every delete marker.

        Raises:
            ObjectLocked: a version is under retention or legal hold. Others may be gone by then.
        """
        await self.locks.delete(check_key(key))

    async def confirm(self, keys: Iterable[str]) -> None:
        """Durable when the marker is removed, some time later: a crash before it makes them pending again."""
        self.markers.confirm(keys)

    async def pending(self) -> AsyncIterator[ObjectInfo]:
        """Also raises IntegrityError at the very end for damaged ones, like `list`."""
        damaged: list[str] = []
        async with aclosing(self.markers.left()) as keys:
            async for key in keys:
                try:
                    info = await self.head(key)
                except NotFound:
                    self.markers.confirm([key])  # never finished, or deleted since: nothing to announce
                except IntegrityError:
                    damaged.append(key)
                else:
                    yield info
        if damaged:
            raise IntegrityError("pending objects with damaged headers", count=len(damaged))

    async def check(self) -> None:
        """Writes, reads and removes a small object, bounded in time. Raises StoreFull, StoreUnavailable."""
        data = secrets.token_bytes(64)
        name = CHECK + secrets.token_hex(12)
        try:
            async with asyncio.timeout(self.wire.limits.check):
                version = await self.wire.put(name, data)
                _, read = await self.wire.get(name, version=version)
                await self.wire.remove(name, version or "")
        except TimeoutError:
            raise StoreUnavailable("the object store does not answer in time") from None
        if read != data:
            raise StoreUnavailable("a probe object cannot be read back")

    async def close(self) -> None:
        """Leaves what is pending for others. The store is not usable afterwards."""
        if self._closed:
            return
        self._closed = True
        with suppress(Transient):  # others find it when our sign of life is old
            await self.markers.close()
        await self.wire.close()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the object store is closed")

    async def _read(self, key: str, start: int, end: int | None) -> tuple[Found, bytes]:
        version = await self.first.of(check_key(key))
        try:
            return await self.wire.get(OBJECTS + key, start, end, version)
        except NotFound:
            return await self.wire.get(OBJECTS + key, start, end, await self.first.other(key, version))

    async def _spans(
        self, key: str, version: str | None, start: int, stop: int
    ) -> AsyncGenerator[bytes, None]:
        ahead: deque[asyncio.Task[tuple[Found, bytes]]] = deque()
        try:
            for position in range(start, stop, SPAN):
                end = min(position + SPAN, stop)
                ahead.append(asyncio.create_task(self.wire.get(OBJECTS + key, position, end, version)))
                if len(ahead) > 1:
                    yield (await ahead.popleft())[1]
            while ahead:
                yield (await ahead.popleft())[1]
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)
