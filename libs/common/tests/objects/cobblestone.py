"""A second implementation of C2SP chunked-encryption, for comparison: from the specification's text, with
nothing of ours and other primitives. HKDF-Expand from HMAC, AES-GCM from AES in counter mode and a GHASH
written out. Slow, and obvious.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CHUNK, TAG, SALT = 16 * 1024, 16, 24
LABEL = b"c2sp.org/chunked-encryption@v1+" + b"AEAD_AES_256_GCM" + b"\x00"


class Refused(Exception):
    pass


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 section 2.3, with SHA-512."""
    okm, block, counter = b"", b"", 1
    while len(okm) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha512).digest()
        okm += block
        counter += 1
    return okm[:length]


def derive(key: bytes, salt: bytes, context: bytes) -> tuple[bytes, bytes, bytes]:
    okm = hkdf_expand(key, LABEL + salt + context, 32 + 12 + 32)
    return okm[:32], okm[32:44], okm[44:]


def multiply(x: int, y: int) -> int:
    """In GF(2^128) as NIST SP 800-38D section 6.3 orders its bits."""
    z = 0
    for bit in range(127, -1, -1):
        if y >> bit & 1:
            z ^= x
        x = x >> 1 ^ (0xE1 << 120 if x & 1 else 0)
    return z


class Gcm:
    """NIST SP 800-38D for nonces of 96 bits and no additional data."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - one block: the hash key
        h = int.from_bytes(encryptor.update(bytes(16)), "big")
        # Products of the hash key with every value of every byte: GHASH by look-up.
        self._table = [[multiply(value << 8 * place, h) for value in range(256)] for place in range(16)]

    def counter_mode(self, nonce: bytes, data: bytes, first: int) -> bytes:
        cipher = Cipher(algorithms.AES(self._key), modes.CTR(nonce + first.to_bytes(4, "big")))
        return cipher.encryptor().update(data)

    def tag(self, nonce: bytes, sealed: bytes) -> bytes:
        padded = sealed + bytes(-len(sealed) % 16) + bytes(8) + (8 * len(sealed)).to_bytes(8, "big")
        state = 0
        for start in range(0, len(padded), 16):
            state ^= int.from_bytes(padded[start : start + 16], "big")
            product = 0
            for place in range(16):
                product ^= self._table[place][state >> 8 * place & 255]
            state = product
        return self.counter_mode(nonce, state.to_bytes(16, "big"), 1)

    def seal(self, nonce: bytes, plain: bytes) -> bytes:
        sealed = self.counter_mode(nonce, plain, 2)
        return sealed + self.tag(nonce, sealed)

    def open(self, nonce: bytes, sealed: bytes) -> bytes:
        body, tag = sealed[:-TAG], sealed[-TAG:]
        if len(sealed) < TAG or tag != self.tag(nonce, body):
            raise Refused
        return self.counter_mode(nonce, body, 2)


def nonce_of(base: bytes, number: int) -> bytes:
    counter = number.to_bytes(12, "big")
    return bytes(one ^ other for one, other in zip(base, counter, strict=True))


def encrypt(key: bytes, salt: bytes, context: bytes, message: bytes) -> bytes:
    derived, base, commitment = derive(key, salt, context)
    gcm, out, number = Gcm(derived), salt + commitment, 0
    while len(message) >= CHUNK:
        out += gcm.seal(nonce_of(base, number), message[:CHUNK])
        message = message[CHUNK:]
        number += 1
    return out + gcm.seal(nonce_of(base, number), message)


def decrypt(key: bytes, context: bytes, stored: bytes) -> bytes:
    if len(stored) < 56:
        raise Refused
    salt, commitment, rest = stored[:SALT], stored[SALT:56], stored[56:]
    derived, base, expected = derive(key, salt, context)
    if commitment != expected:
        raise Refused
    gcm, message, number = Gcm(derived), b"", 0
    while len(rest) >= CHUNK + TAG:
        message += gcm.open(nonce_of(base, number), rest[: CHUNK + TAG])
        rest = rest[CHUNK + TAG :]
        number += 1
    return message + gcm.open(nonce_of(base, number), rest)
