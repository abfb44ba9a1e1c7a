"""Objects on their way into a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from isocenter.common.errors import StoreUnavailable
from isocenter.common.objects.beside import PlainStaging
from isocenter.common.objects.keys import check_key, check_metadata
from isocenter.common.objects.ports import PutResult
from isocenter.common.objects.s3.content import Content
from isocenter.common.objects.s3.markers import Markers
from isocenter.common.objects.s3.placing import Placing


class S3Staging(PlainStaging):
    """An object on its way: in memory up to `S3Limits.buffer`, else in a file in the scratch directory."""

    def __init__(
        self, content: Content, placing: Placing, markers: Markers, require_open: Callable[[], None]
    ) -> None:
        self._content = content
        self._placing = placing
        self._markers = markers
        self._store_open = require_open
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        await self._content.drop()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._require_open()
        try:
            await self._content.append(data)
        except BaseException:
            self._closed = True
            raise

    async def commit(self, key: str, metadata: Mapping[str, str], *, pending: bool = False) -> PutResult:
        self._require_open()
        check_key(key)
        checked = check_metadata(metadata)
        self._closed = True
        sha256 = await self._content.finish()
        if not pending:
            return await self._placing.put(key, self._content, sha256, checked)
        noted = asyncio.create_task(self._markers.note(key))
        try:
            result = await self._placing.put(key, self._content, sha256, checked)
        except StoreUnavailable:
            await asyncio.gather(noted, return_exceptions=True)
            raise  # it may be there all the same: it stays pending
        except BaseException:
            if (await asyncio.gather(noted, return_exceptions=True))[0] is None:
                self._markers.withdraw(key)
            raise
        await noted
        if not result.created:
            # Its first commit says whether something must follow; that may still be to come.
            self._markers.withdraw(key)
        return result

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("staging was committed or discarded already")
        self._store_open()
