"""Plaintext offsets in front of a sealing that changes sizes and binds to its context."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from isocenter.common.errors import IntegrityError, NotFound
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.objects.ports import ObjectInfo
from isocenter.common.objects.sealing import Buffer, SealContext, Sealing, Unsealed
from isocenter.common.objects.vault import PIECE, Vault

CONTEXT = SealContext("study-one", "object")
OTHER = SealContext("study-two", "object")
KEY = "instances/ab/abcdef"
CHUNK, TAG, HEAD = 1000, 8, 24
DATA = bytes(range(251)) * 9000


def tag(context: SealContext, number: int, chunk: bytes) -> bytes:
    return hashlib.sha256(context.study_key.encode() + number.to_bytes(8, "big") + chunk).digest()[:TAG]


class TaggedChunks:
    """Shape of a real sealing without its secrecy: a head, then chunks that each grow by a tag."""

    name = "tagged"

    async def writer(self, context: SealContext) -> _Writer:
        return _Writer(context)

    async def reader(self, context: SealContext, info: ObjectInfo) -> _Reader:
        return _Reader(context)

    def plain_size(self, info: ObjectInfo) -> int:
        chunks = -(-(info.size - HEAD) // (CHUNK + TAG))
        return info.size - HEAD - chunks * TAG

    async def check(self) -> None:
        pass


class _Reader:
    head_bytes = HEAD

    def __init__(self, context: SealContext) -> None:
        self._context = context

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        return HEAD + start // CHUNK * (CHUNK + TAG), HEAD + -(-end // CHUNK) * (CHUNK + TAG)

    def open_range(self, head: Buffer, stored: Buffer, start: int, end: int) -> bytes:
        assert bytes(head) == b"H" * HEAD
        plain = b""
        for number, offset in enumerate(range(0, len(stored), CHUNK + TAG), start=start // CHUNK):
            sealed = bytes(stored[offset : offset + CHUNK + TAG])
            if tag(self._context, number, sealed[:-TAG]) != sealed[-TAG:]:
                raise IntegrityError("chunk does not open")
            plain += sealed[:-TAG]
        return plain[start % CHUNK :][: end - start]


class _Writer:
    def __init__(self, context: SealContext) -> None:
        self._context = context
        self._rest = b""
        self._number = 0
        self._head = b"H" * HEAD

    def update(self, *data: Buffer) -> bytes:
        self._rest += b"".join(data)
        out, self._head = self._head, b""
        while len(self._rest) >= CHUNK:
            out += self._chunk(self._rest[:CHUNK])
            self._rest = self._rest[CHUNK:]
        return out

    def finish(self, *data: Buffer) -> bytes:
        whole = self.update(*data)
        return whole + (self._chunk(self._rest) if self._rest else b"")

    def _chunk(self, chunk: bytes) -> bytes:
        self._number += 1
        return chunk + tag(self._context, self._number - 1, chunk)


@pytest.fixture(params=[Unsealed(), TaggedChunks()], ids=["unsealed", "tagged"])
def sealing(request: pytest.FixtureRequest) -> Sealing:
    chosen: Sealing = request.param
    return chosen


@pytest.fixture
async def vault(tmp_path: Path, sealing: Sealing) -> AsyncIterator[Vault]:
    store = LocalObjectStore(tmp_path)
    yield Vault(store, sealing)
    await store.close()


async def put(vault: Vault, data: bytes) -> None:
    async with vault.stage(CONTEXT) as staging:
        for start in range(0, len(data), 300_001):
            await staging.write(data[start : start + 300_001])
        assert len(data) == staging.plain_size
        result = await staging.commit(KEY, {"transfer_id": "1"})
    assert {"transfer_id": "1", "sealing": vault.sealing.name} == result.info.metadata


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (0, 1), (999, 1001), (1000, 2000), (PIECE - 1, PIECE + 1), (0, 1 << 40), (5, 3)],
)
async def test_ranges_are_plaintext_ranges(vault: Vault, start: int, end: int) -> None:
    await put(vault, DATA)
    reader = await vault.reader(KEY, CONTEXT)

    assert len(DATA) == reader.size
    assert DATA[start:end] == await reader.read(start, end)
    pieces = [piece async for piece in reader.stream(start, end)]
    assert DATA[start:end] == b"".join(pieces)
    assert all(0 < len(piece) <= PIECE for piece in pieces)


async def test_a_stream_without_end_is_the_whole_plaintext(vault: Vault) -> None:
    await put(vault, DATA)
    reader = await vault.reader(KEY, CONTEXT)
    assert b"".join([piece async for piece in reader.stream()]) == DATA


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001])
async def test_small_documents(vault: Vault, size: int) -> None:
    await vault.put(KEY, CONTEXT, DATA[:size])
    assert DATA[:size] == await vault.get(KEY, CONTEXT)
    assert size == (await vault.reader(KEY, CONTEXT)).size


async def test_leaving_without_commit_leaves_nothing(vault: Vault) -> None:
    async with vault.stage(CONTEXT) as staging:
        await staging.write(DATA)
    with pytest.raises(NotFound):
        await vault.reader(KEY, CONTEXT)


async def test_an_object_that_vanishes_while_it_is_read(vault: Vault) -> None:
    await put(vault, DATA)
    reader = await vault.reader(KEY, CONTEXT)
    await vault.store.delete(KEY)
    with pytest.raises(NotFound):
        await reader.read(0, 10)


async def test_another_context_does_not_open_a_sealed_object(tmp_path: Path) -> None:
    vault = Vault(LocalObjectStore(tmp_path), TaggedChunks())
    await vault.put(KEY, CONTEXT, DATA)
    with pytest.raises(IntegrityError):
        await vault.get(KEY, OTHER)
    with pytest.raises(IntegrityError):
        await (await vault.reader(KEY, OTHER)).read(0, 10)
    await vault.store.close()
