"""Pulls from S3: the Part 10 objects below one prefix."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from isocenter.common.dicom.header import HeaderScanner
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import InvalidInstance, Misconfigured
from isocenter.ingest.pull.domain import Place, PullFailed, PullReason, PullRefused
from isocenter.ingest.pull.tasks import each, watched

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

    from isocenter.ingest.pull.ports import Sink
    from isocenter.ingest.pull.sources import S3Source

_PROBE_BYTES: Final = 64 << 10
_PIECE: Final = 1 << 20
_NO_INSTANCE: Final = frozenset({"DICOMDIR"})
_RETRY_SECONDS: Final = 10.0
_NOT_ALLOWED: Final = ("403 Forbidden", "401 Unauthorized", "AccessDenied", "SignatureDoesNotMatch")
"""What a listing that is refused says in an error that obstore does not classify."""


class S3Remote:
    """The objects below a prefix. Which instance an object is, is known by its first bytes alone."""

    def __init__(self, source: S3Source, path: str, *, limit_seconds: float) -> None:
        """Raises Misconfigured: a secret or certificate cannot be read."""
        self._source = source
        bucket, _, prefix = source.root.removeprefix("s3://").partition("/")
        self._prefix = "/".join(part for part in (prefix, path) if part)
        options: ClientConfig = {
            "allow_http": source.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(10.0, source.idle_seconds)),
            "timeout": timedelta(seconds=limit_seconds),
        }
        if source.ca_file is not None:
            try:
                options["root_certificate"] = source.ca_file.read_bytes()
            except OSError as error:
                raise Misconfigured(
                    f"source {source.name}: its CA file cannot be read: {type(error).__name__}"
                ) from None
        keys: S3Config = {"skip_signature": True}
        if source.access_key is not None and source.secret_key is not None:
            keys = {
                "access_key_id": source.access_key.read(),
                "secret_access_key": source.secret_key.read(),
            }
        endpoint = source.endpoint.rstrip("/")
        if not source.path_style:
            scheme, _, host = endpoint.partition("://")
            endpoint = f"{scheme}://{bucket}.{host}"
        self._store = S3Store(
            bucket,
            endpoint=endpoint,
            region=source.region,
            config=keys,
            virtual_hosted_style_request=not source.path_style,
            client_options=options,
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
        )

    async def places(self) -> list[Place] | None:
        """None: names of objects say nothing; `fetch` looks at each object's head instead."""
        return None

    async def fetch(self, sink: Sink, here: set[str], places: list[Place] | None) -> None:
        async def one(found: tuple[str, int]) -> None:
            name, size = found
            if here and (uid := await self._sop_instance_uid(name, size)) in here:
                sink.known([uid])
                return
            try:
                answer = await obstore.get_async(self._store, name)
                pieces = answer.stream(min_chunk_size=_PIECE)
                await sink.store(self._bytes(pieces))
            except BaseError as error:
                raise _failure(error) from None

        await each(self._objects(), one, self._source.connections)

    async def close(self) -> None:
        """Nothing is held open."""

    async def _objects(self) -> AsyncIterator[tuple[str, int]]:
        count = 0
        try:
            async for page in watched(
                obstore.list(self._store, self._prefix or None, chunk_size=1000), self._source.idle_seconds
            ):
                for found in page:
                    name, size = found["path"], found["size"]
                    if size == 0 or name.rpartition("/")[2] in _NO_INSTANCE:
                        continue
                    count += 1
                    if count > self._source.max_instances:
                        raise PullRefused(PullReason.TOO_LARGE)
                    yield name, size
        except BaseError as error:
            raise _failure(error) from None

    async def _bytes(self, pieces: Any) -> AsyncIterator[bytes]:
        try:
            async for piece in watched(pieces, self._source.idle_seconds):
                yield bytes(piece)
        except BaseError as error:
            raise _failure(error) from None

    async def _sop_instance_uid(self, name: str, size: int) -> str:
        """Empty where the head does not tell."""
        try:
            head = bytes(
                await obstore.get_range_async(self._store, name, start=0, end=min(size, _PROBE_BYTES))
            )
            splitter = Part10Splitter()
            body = splitter.feed(head)
            if splitter.meta is None:
                return ""
            found = HeaderScanner(splitter.meta.transfer_syntax_uid, _PROBE_BYTES).feed(body)
        except BaseError as error:
            raise _failure(error) from None
        except InvalidInstance:
            return ""
        return "" if found is None else found.sop_instance_uid


def _failure(error: BaseError) -> PullFailed | PullRefused:
    """The text of an error of obstore quotes the answer: only its type is told."""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return PullFailed(PullReason.ACCESS_DENIED)
    if isinstance(error, NotFoundError):
        return PullFailed(PullReason.STUDY_NOT_FOUND)
    text = str(error)
    if any(said in text for said in _NOT_ALLOWED):
        return PullFailed(PullReason.ACCESS_DENIED)
    if "redirect" in text.lower():
        return PullRefused(PullReason.REDIRECTED)
    return PullFailed(PullReason.SOURCE_UNAVAILABLE, cause=type(error).__name__)
