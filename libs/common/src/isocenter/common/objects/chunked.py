"""C2SP chunked-encryption, version 1, as Cobblestone-256: https://c2sp.org/chunked-encryption

    salt (24) | commitment (32) | chunk 0 | chunk 1 | ... | last chunk

A chunk is 16,384 bytes of plaintext under AES-256-GCM, and its tag of 16 bytes. The last one is always
shorter and may be empty, so that an object cut at the edge of a chunk is seen to be cut. Key, base nonce and
commitment come from HKDF-Expand with SHA-512 over the input key, the salt and a context; a chunk's nonce is
the base nonce XOR its number. Where a plaintext byte lies is arithmetic.
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from isocenter.common.errors import IntegrityError

Buffer = bytes | bytearray | memoryview

NAME: Final = "c2sp-chunked-aes-256-gcm"
CHUNK: Final = 16_384
TAG: Final = 16
SEALED_CHUNK: Final = CHUNK + TAG
SALT: Final = 24
KEY: Final = 32
HEAD: Final = SALT + 32
MAX_CHUNKS: Final = 1 << 38

_NONCE: Final = 12
_INFO: Final = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"


class ChunkedCipher:
    """One message's key, base nonce and commitment."""

    __slots__ = ("_aead", "_base", "commitment")

    def __init__(self, input_key: bytes, salt: bytes, context: bytes) -> None:
        if len(input_key) != KEY or len(salt) != SALT:
            raise ValueError("an input key has 32 bytes and a salt 24")
        derived = HKDFExpand(SHA512(), KEY + _NONCE + 32, _INFO + salt + context).derive(input_key)
        self._aead = AESGCM(derived[:KEY])
        self._base = int.from_bytes(derived[KEY : KEY + _NONCE], "big")
        self.commitment = derived[KEY + _NONCE :]

    @classmethod
    def of_head(cls, input_key: bytes, head: Buffer, context: bytes) -> ChunkedCipher:
        """The cipher of a stored message.

        Raises:
            IntegrityError: another key, another context, or a head that was changed.
        """
        if len(head) < HEAD:
            raise IntegrityError("a sealed object is shorter than its head")
        cipher = cls(input_key, bytes(head[:SALT]), context)
        if not hmac.compare_digest(cipher.commitment, bytes(head[SALT:HEAD])):
            raise IntegrityError("an object is sealed with another key, or for another place")
        return cipher

    def seal_into(self, number: int, plain: Buffer, out: memoryview) -> None:
        """Chunk `number` into `out`, which is 16 bytes longer than `plain`."""
        self._aead.encrypt_into(self._nonce(number), plain, None, out)

    def open_into(self, number: int, sealed: Buffer, out: memoryview) -> None:
        """Raises IntegrityError: what `out` holds then must not be shown to anybody."""
        try:
            self._aead.decrypt_into(self._nonce(number), sealed, None, out)
        except InvalidTag:
            raise IntegrityError("a chunk of a sealed object does not open", chunk=number) from None

    def _nonce(self, number: int) -> bytes:
        if number >= MAX_CHUNKS:
            raise IntegrityError("a sealed object has more chunks than the format allows")
        return (self._base ^ number).to_bytes(_NONCE, "big")


class ChunkWriter:
    """A message on its way: bytes of any split become chunks. Holds less than one chunk of plaintext.

    What `update` and `finish` return is overwritten by the next call: a fresh buffer for each would cost more
    than the encryption.
    """

    def __init__(self, input_key: bytes, salt: bytes, context: bytes) -> None:
        self._cipher = ChunkedCipher(input_key, salt, context)
        self._head = salt + self._cipher.commitment
        self._number = 0
        self._rest = bytearray(CHUNK)
        self._held = 0
        self._out = bytearray(HEAD + SEALED_CHUNK)

    def update(self, *data: Buffer) -> memoryview:
        """Head and whole chunks that are full now; empty while a chunk fills."""
        whole, _ = divmod(self._held + sum(map(len, data)), CHUNK)
        out = self._room((len(self._head) + whole * SEALED_CHUNK) if whole else 0)
        self._take(data, out)
        return out

    def finish(self, *data: Buffer) -> memoryview:
        """The chunks of `data`, the last, short chunk, and the head if it has not gone yet."""
        whole, rest = divmod(self._held + sum(map(len, data)), CHUNK)
        out = self._room(len(self._head) + whole * SEALED_CHUNK + rest + TAG)
        position = self._take(data, out)
        self._seal(memoryview(self._rest)[: self._held], out[position:])
        return out

    def _take(self, data: tuple[Buffer, ...], out: memoryview) -> int:
        """Seals what fills chunks and keeps the rest; the position in `out` behind them."""
        position = self._write_head(out) if out else 0
        for piece in data:
            plain = memoryview(piece)
            if self._held and self._held + len(plain) >= CHUNK:
                taken = CHUNK - self._held
                self._rest[self._held :] = plain[:taken]
                self._held = 0
                position = self._seal(memoryview(self._rest), out[position:]) + position
                plain = plain[taken:]
            if not self._held:
                while len(plain) >= CHUNK:
                    position = self._seal(plain[:CHUNK], out[position:]) + position
                    plain = plain[CHUNK:]
            self._rest[self._held : self._held + len(plain)] = plain
            self._held += len(plain)
        return position

    def _room(self, size: int) -> memoryview:
        if len(self._out) < size:
            self._out = bytearray(size)
        return memoryview(self._out)[:size]

    def _write_head(self, out: memoryview) -> int:
        head, self._head = self._head, b""
        out[: len(head)] = head
        return len(head)

    def _seal(self, plain: memoryview, out: memoryview) -> int:
        """Returns the length of the sealed chunk, which is at the beginning of `out`."""
        size = len(plain) + TAG
        self._cipher.seal_into(self._number, plain, out[:size])
        self._number += 1
        return size


def plain_size(stored_size: int) -> int:
    """Bytes of plaintext in a message of this length.

    Raises:
        IntegrityError: no message has this length: it was cut.
    """
    chunks, rest = divmod(stored_size - HEAD, SEALED_CHUNK)
    if stored_size < HEAD or rest < TAG:
        raise IntegrityError("a sealed object has a length that none can have")
    return chunks * CHUNK + rest - TAG


def stored_range(start: int, end: int, size: int) -> tuple[int, int]:
    """The stored bytes of the chunks that hold plaintext [start, end) of a message of `size` bytes.

    A range that reaches the end takes the last chunk with it, even an empty one: that it opens is what proves
    the length.
    """
    first = start // CHUNK
    last = size // CHUNK if end >= size else (end - 1) // CHUNK
    stop = HEAD + last * SEALED_CHUNK + min(CHUNK, size - last * CHUNK) + TAG
    return HEAD + first * SEALED_CHUNK, stop


def open_chunks(cipher: ChunkedCipher, first: int, sealed: Buffer) -> memoryview:
    """Plaintext of consecutive chunks, the first of which has number `first`; only the last may be short.

    Raises:
        IntegrityError: any of them does not open. Nothing of the others is returned then.
    """
    stored = memoryview(sealed)
    count = -(-len(stored) // SEALED_CHUNK)
    plain = memoryview(bytearray(max(0, len(stored) - count * TAG)))
    for number in range(count):
        chunk = stored[number * SEALED_CHUNK : (number + 1) * SEALED_CHUNK]
        if len(chunk) < TAG:
            raise IntegrityError("a sealed object ends within a tag")
        begin = number * CHUNK
        cipher.open_into(first + number, chunk, plain[begin : begin + len(chunk) - TAG])
    return plain
