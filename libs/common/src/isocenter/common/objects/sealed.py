"""Objects sealed with their study's key."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import IntegrityError
from isocenter.common.objects.chunked import (
    CHUNK,
    HEAD,
    NAME,
    SALT,
    ChunkedCipher,
    ChunkWriter,
    open_chunks,
    plain_size,
    stored_range,
)
from isocenter.common.objects.sealing import NONE, PlainReader, SealContext, sealing_of

if TYPE_CHECKING:
    from isocenter.common.keys.study import StudyKey, StudyKeys
    from isocenter.common.objects.ports import ObjectInfo
    from isocenter.common.objects.sealing import Buffer, SealReader

FORMAT: Final = b"isocenter/object/1"


class Sealed:
    """A `Sealing` by C2SP chunked-encryption under the key of the study.

    Args:
        keys: of the site's studies.
        read_unsealed: whether objects that say they are not sealed are read. Who can write to the store could
            say so of anything.
        random: for salts.
    """

    name = NAME

    def __init__(
        self, keys: StudyKeys, *, read_unsealed: bool = True, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self.keys = keys
        self._read_unsealed = read_unsealed
        self._random = random

    async def writer(self, context: SealContext) -> ChunkWriter:
        key = await self.keys.for_sealing(context.study_key)
        return ChunkWriter(key.secret, self._random(SALT), binding(key, context.object_id))

    async def reader(self, context: SealContext, info: ObjectInfo) -> SealReader:
        if sealing_of(info) == NONE:
            self.plain_size(info)
            return PlainReader()
        size = self.plain_size(info)
        key = await self.keys.for_opening(context.study_key)
        return SealedReader(key, context, info.key, size)

    def plain_size(self, info: ObjectInfo) -> int:
        sealing = sealing_of(info)
        if sealing == NAME:
            return plain_size(info.size)
        if sealing != NONE:
            raise IntegrityError("an object is sealed in a way that is not known", object_key=info.key)
        if not self._read_unsealed:
            raise IntegrityError("an object is not sealed, and this site refuses such", object_key=info.key)
        return info.size

    async def check(self) -> None:
        await self.keys.table.check()


class SealedReader:
    """The head is checked against the key once, and the cipher kept for the ranges that follow."""

    head_bytes = HEAD

    def __init__(self, key: StudyKey, context: SealContext, object_key: str, size: int) -> None:
        self._key = key
        self._context = context
        self._object_key = object_key
        self._size = size
        self._cipher: ChunkedCipher | None = None

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        return stored_range(start, end, self._size)

    def open_range(self, head: Buffer, stored: Buffer, start: int, end: int) -> bytes:
        first, last = self.stored_range(start, end)
        if len(stored) != last - first:
            raise IntegrityError("a sealed object is shorter than it was", object_key=self._object_key)
        try:
            if self._cipher is None:
                context = binding(self._key, self._context.object_id)
                self._cipher = ChunkedCipher.of_head(self._key.secret, head, context)
            begin = start // CHUNK
            plain = open_chunks(self._cipher, begin, stored)
        except IntegrityError as error:
            error.ids["object_key"] = self._object_key
            raise
        return bytes(plain[start - begin * CHUNK : end - begin * CHUNK])


def binding(key: StudyKey, object_id: str) -> bytes:
    """The context of chunked-encryption: what an object is sealed to. No part but the last can hold a NUL."""
    return b"\0".join((FORMAT, key.tenant.encode(), key.key_id.encode(), object_id.encode()))
