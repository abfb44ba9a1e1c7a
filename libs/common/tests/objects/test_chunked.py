"""C2SP chunked-encryption: against a second implementation, at every edge, and under every kind of attack.

The specification publishes no test vectors (github.com/C2SP/C2SP and C2SP/CCTV were searched). The vectors
here were made by the second implementation, whose own GCM is checked against those of the specification of
GCM.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.common.errors import IntegrityError
from isocenter.common.objects import chunked
from isocenter.common.objects.chunked import CHUNK, HEAD, SEALED_CHUNK, TAG, ChunkedCipher, ChunkWriter


def _second() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cobblestone", Path(__file__).with_name("cobblestone.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cobblestone"] = module
    spec.loader.exec_module(module)
    return module


second = _second()
KEY, SALT, CONTEXT = bytes(range(32)), bytes(range(100, 124)), b"a context"
EDGES = [0, 1, 15, 16, CHUNK - 1, CHUNK, CHUNK + 1, 20 * 1024, 2 * CHUNK, 3 * CHUNK + 17]
LONG_FORM = os.environ.get("ISOCENTER_TEST_LONG") == "1"
MUTATIONS = 10_000


def message(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def seal(plain: bytes, *, cuts: list[int] | None = None, context: bytes = CONTEXT, key: bytes = KEY) -> bytes:
    writer, out, position = ChunkWriter(key, SALT, context), b"", 0
    for cut in sorted({*(cuts or []), len(plain)}):
        out += bytes(writer.update(plain[position:cut]))
        position = cut
    return out + bytes(writer.finish())


def unseal(stored: bytes, *, context: bytes = CONTEXT, key: bytes = KEY) -> bytes:
    """The whole message. Raises IntegrityError."""
    size = chunked.plain_size(len(stored))
    return read(stored, 0, size, context=context, key=key)


def read(stored: bytes, start: int, end: int, *, context: bytes = CONTEXT, key: bytes = KEY) -> bytes:
    cipher = ChunkedCipher.of_head(key, stored[:HEAD], context)
    first, last = chunked.stored_range(start, end, chunked.plain_size(len(stored)))
    plain = chunked.open_chunks(cipher, start // CHUNK, stored[first:last])
    skip = start // CHUNK * CHUNK
    return bytes(plain[start - skip : end - skip])


def test_the_second_implementation_knows_gcm() -> None:
    """Test cases 13, 14 and 15 of the GCM specification behind NIST SP 800-38D: AES-256, no data beside."""
    zero = second.Gcm(bytes(32))
    assert "530f8afbc74536b9a963b4f1c4cb738b" == zero.seal(bytes(12), b"").hex()
    expected = "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    assert expected == zero.seal(bytes(12), bytes(16)).hex()
    gcm = second.Gcm(bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2))
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
    )
    assert (
        "b094dac5d93471bdec1a502270e3cc6c"
        == gcm.seal(bytes.fromhex("cafebabefacedbaddecaf888"), plain)[-16:].hex()
    )


@pytest.mark.parametrize("size", EDGES)
def test_both_implementations_make_the_same_bytes(size: int) -> None:
    plain = message(size)
    stored = seal(plain)

    assert second.encrypt(KEY, SALT, CONTEXT, plain) == stored
    assert plain == second.decrypt(KEY, CONTEXT, stored)
    assert plain == unseal(second.encrypt(KEY, SALT, CONTEXT, plain))
    assert size == chunked.plain_size(len(stored))
    assert len(stored) == HEAD + size + (size // CHUNK + 1) * TAG


@given(
    plain=st.binary(max_size=400).flatmap(lambda piece: st.integers(0, 130).map(lambda times: piece * times)),
    key=st.binary(min_size=32, max_size=32),
    context=st.binary(max_size=80),
    cuts=st.lists(st.integers(0, 50_000), max_size=6),
)
@settings(max_examples=400 if LONG_FORM else 40, deadline=None)
def test_whatever_the_message_and_however_it_comes(
    plain: bytes, key: bytes, context: bytes, cuts: list[int]
) -> None:
    stored = seal(plain, cuts=[min(cut, len(plain)) for cut in cuts], context=context, key=key)

    assert plain == unseal(stored, context=context, key=key)
    assert plain == second.decrypt(key, context, stored)


@given(size=st.sampled_from(EDGES), data=st.data())
@settings(max_examples=200, deadline=None)
def test_ranges_open_from_the_chunks_that_hold_them(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    if start < end:
        assert message(size)[start:end] == read(seal(message(size)), start, end)


@pytest.mark.parametrize(
    "attack",
    [
        lambda s: s[: HEAD + SEALED_CHUNK],
        lambda s: s[: HEAD + 2 * SEALED_CHUNK + 40],
        lambda s: s[:-1],
        lambda s: s[:HEAD],
        lambda s: s[: HEAD - 1],
        lambda s: b"",
        lambda s: s + b"\0",
        lambda s: s + s[-TAG:],
        lambda s: s + s[HEAD:],
        lambda s: s[:HEAD] + s[HEAD + SEALED_CHUNK :],
        lambda s: (
            s[:HEAD]
            + s[HEAD + SEALED_CHUNK : HEAD + 2 * SEALED_CHUNK]
            + s[HEAD : HEAD + SEALED_CHUNK]
            + s[HEAD + 2 * SEALED_CHUNK :]
        ),
        lambda s: s[:HEAD] + s[HEAD : HEAD + SEALED_CHUNK] + s[HEAD:],
        lambda s: s[:24] + bytes(32) + s[HEAD:],
        lambda s: bytes(24) + s[24:],
    ],
)
def test_a_changed_message_does_not_open(attack: Callable[[bytes], bytes]) -> None:
    stored = seal(message(3 * CHUNK + 17))
    changed = attack(stored)
    assert changed != stored
    with pytest.raises(IntegrityError):
        unseal(changed)
    with pytest.raises(second.Refused):
        second.decrypt(KEY, CONTEXT, changed)


def test_a_message_that_ends_with_a_full_chunk_cannot_lose_its_empty_one() -> None:
    stored = seal(message(2 * CHUNK))
    with pytest.raises(IntegrityError):
        unseal(stored[:-TAG])


def test_another_key_or_context_opens_nothing() -> None:
    stored = seal(message(100))
    with pytest.raises(IntegrityError, match="another key"):
        unseal(stored, key=bytes(32))
    for other in (b"", b"a contexT", CONTEXT + b"\0"):
        with pytest.raises(IntegrityError, match="another key"):
            unseal(stored, context=other)


def test_every_random_mutation_is_refused_and_nothing_is_released() -> None:
    """10,000 of them: of one bit, of some bytes, cuts, insertions, chunks moved between two messages."""
    chance = random.Random(os.environ.get("ISOCENTER_TEST_SEED", "mutations"))
    size = 2 * CHUNK + 300
    plain = message(size)
    stored, other = seal(plain), seal(plain[::-1], context=b"another")
    released = 0
    for _ in range(MUTATIONS * (10 if LONG_FORM else 1)):
        changed = mutated(stored, other, chance)
        if changed == stored:
            continue
        try:
            unseal(changed)
        except IntegrityError:
            continue
        released += 1
    assert 0 == released


def mutated(stored: bytes, other: bytes, chance: random.Random) -> bytes:
    data = bytearray(stored)
    at = chance.randrange(len(data))
    match chance.randrange(7):
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at : at + 16] = chance.randbytes(len(data[at : at + 16]))
        case 2:
            del data[at:]
        case 3:
            del data[at : at + chance.randrange(1, 200)]
        case 4:
            data[at:at] = chance.randbytes(chance.randrange(1, 200))
        case 5:
            number, target = chance.randrange(2), chance.randrange(2)
            begin, to = HEAD + number * SEALED_CHUNK, HEAD + target * SEALED_CHUNK
            data[to : to + SEALED_CHUNK] = other[begin : begin + SEALED_CHUNK]
        case _:
            data += chance.randbytes(chance.randrange(1, 40))
    return bytes(data)


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_range_that_does_not_open_releases_nothing_of_its_sound_chunks(chunk: int) -> None:
    stored = bytearray(seal(message(3 * CHUNK)))
    stored[HEAD + chunk * SEALED_CHUNK + 5] ^= 1
    with pytest.raises(IntegrityError) as caught:
        read(bytes(stored), 0, 3 * CHUNK)
    assert message(3 * CHUNK)[:16] not in repr(caught.value.__dict__).encode()
    for sound in {0, 1, 2} - {chunk}:
        begin = sound * CHUNK
        assert message(3 * CHUNK)[begin : begin + 9] == read(bytes(stored), begin, begin + 9)


def test_known_answers() -> None:
    """By the second implementation, so that a change of both at once is noticed."""
    digests = {
        size: hashlib.sha256(second.encrypt(KEY, SALT, CONTEXT, bytes(size))).hexdigest()[:32]
        for size in (0, 1, CHUNK)
    }
    assert KNOWN == digests
    assert KNOWN == {size: hashlib.sha256(seal(bytes(size))).hexdigest()[:32] for size in (0, 1, CHUNK)}


KNOWN: dict[int, str] = {
    0: "7cdfe9cb3273593afaf12cfb0f4e1846",
    1: "f38f0c03dd6510e1a727e03440510bc1",
    CHUNK: "f28d692d0df654995f05086a014ff519",
}
