"""Single requests to one bucket: bounded in time, retried, counted, their errors translated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import obstore
from minio.deleteobjects import DeleteObject
from obstore.store import S3Store

from isocenter.common.errors import NotFound, StoreUnavailable
from isocenter.common.objects.s3.admin import Admin, Version, authorities, required
from isocenter.common.objects.s3.errors import CLIENT_ERRORS, Exists, status_and_code, translated
from isocenter.common.settings import S3Settings
from isocenter.common.telemetry import Counter, Histogram

if TYPE_CHECKING:
    from obstore import GetOptions, OffsetRange
    from obstore.store import S3Config

    from isocenter.common.telemetry.metrics import Metrics

Result = TypeVar("Result")

_RANGE_NOT_SATISFIABLE: Final = 416
_LAST_REFERENCES: Final = 0.05
"""Seconds in which the client's threads let go of what they hold of Python's: they abort a process that has
ended before them.
"""


@dataclass(frozen=True, slots=True)
class S3Limits:
    """Bounds of the store, in bytes and seconds.

    Attributes:
        buffer: an object up to this size waits in memory, a larger one in a file.
        buffers: all objects that wait in memory together; beyond it, smaller ones wait in files, too.
        single: up to this size one request carries an object, so that it can be conditional.
        part: of a multipart upload, at least; `parts_in_flight` of them are in memory for each upload.
        uploads: multipart uploads at a time.
        request: what one request may take, the bytes of one part or one `single` included.
        retry: after a request first failed, how long it is tried again.
        heads: requests in flight for one listing.
        beat: between two signs of life of a process with pending commits; `silent` later it counts as gone.
        upload_age: unfinished uploads older than this are removed when a store is opened.
    """

    buffer: int = 8 << 20
    buffers: int = 128 << 20
    single: int = 64 << 20
    part: int = 8 << 20
    parts_in_flight: int = 4
    uploads: int = 4
    request: float = 30.0
    retry: float = 15.0
    check: float = 10.0
    heads: int = 32
    beat: float = 15.0
    silent: float = 60.0
    upload_age: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Found:
    """An object as a response's headers have it."""

    size: int
    version: str | None
    modified: datetime
    headers: Mapping[str, str]


class Wire:
    """One bucket. Every method raises NotFound, Misconfigured, StoreFull or StoreUnavailable."""

    def __init__(self, settings: S3Settings, limits: S3Limits) -> None:
        endpoint, access, secret = required(settings)
        self.bucket = settings.bucket
        self.limits = limits
        self.metrics: Metrics | None = None
        self._admin = Admin.of(settings, timeout=limits.request)
        trusted = authorities(settings)
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="s3")
        self._store = S3Store(
            settings.bucket,
            endpoint=endpoint if settings.path_style else _virtual(endpoint, settings.bucket),
            region=settings.region,
            config=_credentials(access, secret),
            virtual_hosted_style_request=not settings.path_style,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=min(5.0, limits.request)),
                "timeout": timedelta(seconds=limits.request),
                **({"root_certificate": trusted} if trusted else {}),
            },
            retry_config={
                "max_retries": 6,
                "retry_timeout": timedelta(seconds=limits.retry),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
        )

    async def put(
        self, name: str, data: object, headers: Mapping[str, str] | None = None, *, create: bool = False
    ) -> str | None:
        """In one request; returns the version's id. The signature covers the SHA-256 of the body: a server
        that received other bytes refuses.

        Raises:
            Exists: `create`, the name is taken, and the server looks.
        """
        with self._request("put", name):
            result = await obstore.put_async(
                self._store,
                name,
                data,  # type: ignore[arg-type] # anything with a buffer
                attributes=dict(headers or {}),
                mode="create" if create else "overwrite",
                use_multipart=False,
            )
        return result["version"]

    async def put_parts(
        self, name: str, pieces: AsyncIterator[bytes], size: int, headers: Mapping[str, str]
    ) -> str | None:
        """By multipart upload: invisible until the last part is there."""
        part = max(self.limits.part, -(-size // 9000))  # S3 counts to 10,000
        with self._request("put", name):
            result = await obstore.put_async(
                self._store,
                name,
                pieces,
                attributes=dict(headers),
                use_multipart=True,
                chunk_size=part,
                max_concurrency=self.limits.parts_in_flight,
            )
        return result["version"]

    async def head(self, name: str, version: str | None = None) -> Found:
        with self._request("head", name):
            result = await obstore.get_async(self._store, name, options=_options(version=version, head=True))
            return _found(result)

    async def get(
        self, name: str, start: int = 0, end: int | None = None, version: str | None = None
    ) -> tuple[Found, bytes]:
        """Bytes [start, end), cut at the end of the object; `Found.size` is that of the whole."""
        span: tuple[int, int] | OffsetRange | None = None
        if end is not None:
            span = (start, end)
        elif start:
            span = {"offset": start}
        try:
            with self._request("get", name):
                result = await obstore.get_async(self._store, name, options=_options(version, span))
                return _found(result), (await result.bytes_async()).to_bytes()
        except _BeyondEnd:
            return await self.head(name, version), b""

    async def versions(self, name: str) -> list[Version]:
        """Newest first; delete markers at the end."""
        return await self.blocking("versions", name, lambda: self._admin.versions_of(self.bucket, name))

    async def remove(self, name: str, version: str = "") -> None:
        await self.blocking("delete", name, lambda: self._admin.remove_version(self.bucket, name, version))

    async def copy(self, name: str, target: str) -> None:
        await self.blocking("put", name, lambda: self._admin.copy_within(self.bucket, name, target))

    async def remove_many(self, names: list[tuple[str, str]]) -> None:
        """(name, version or "") each, up to 1000 in a request. What is not there is no error."""
        if not names:
            return
        items = [DeleteObject(name, version or None) for name, version in names]
        failed = await self.blocking(
            "delete", "", lambda: list(self._admin.remove_objects(self.bucket, items))
        )
        if failed:
            raise StoreUnavailable("objects could not be removed", cause=failed[0].code, count=len(failed))

    async def walk(
        self, prefix: str, after: str = "", *, versions: bool = False
    ) -> AsyncGenerator[list[Version], None]:
        pages = self._admin.walk(self.bucket, prefix, after=after, versions=versions)
        while (page := await self.blocking("list", "", lambda: next(pages, None))) is not None:
            yield page

    async def blocking(self, operation: str, name: str, call: Callable[[], Result]) -> Result:
        """A call of the other client, in a thread."""
        with self._request(operation, name):
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
            except RuntimeError:
                raise StoreUnavailable("the object store is closed") from None

    @property
    def admin(self) -> Admin:
        """For `blocking` only."""
        return self._admin

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.sleep(_LAST_REFERENCES)

    @contextmanager
    def _request(self, operation: str, name: str) -> Iterator[None]:
        began = time.perf_counter()
        outcome = ""
        try:
            yield
        except CLIENT_ERRORS as error:
            if status_and_code(error)[0] == _RANGE_NOT_SATISFIABLE:
                raise _BeyondEnd from None
            ours = translated(error, name.partition("/")[2])
            if not isinstance(ours, NotFound | Exists):
                outcome = getattr(ours, "code", "internal")
            raise ours from None
        finally:
            self._count(operation, time.perf_counter() - began, outcome)

    def _count(self, operation: str, seconds: float, error: str) -> None:
        if self.metrics is None:
            return
        self.metrics.record(Histogram.STORE, seconds, operation=operation)
        if error:
            self.metrics.add(Counter.STORE_ERRORS, operation=operation, error_type=error)


class _BeyondEnd(Exception):
    """The range begins behind the last byte."""


def _found(result: obstore.GetResult) -> Found:
    meta = result.meta
    return Found(meta["size"], meta["version"], meta["last_modified"], dict(result.attributes))


def _options(
    version: str | None = None, span: tuple[int, int] | OffsetRange | None = None, *, head: bool = False
) -> GetOptions:
    options: GetOptions = {"head": head}
    if version is not None:
        options["version"] = version
    if span is not None:
        options["range"] = span
    return options


def _virtual(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{bucket}.{parts.netloc}"


def _credentials(access: str | None, secret: str | None) -> S3Config:
    """Without keys, obstore looks at the same places as the admin client."""
    if access is None or secret is None:
        return {}
    return {"access_key_id": access, "secret_access_key": secret}
