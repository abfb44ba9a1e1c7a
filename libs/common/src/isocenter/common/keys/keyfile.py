"""Wrapping by a key file: for sites without a key management service, and for the embedded mode.

The file holds one or more keys of 32 random bytes, one after the other. The last one wraps; those before it
still unwrap, so that a rotation can be interrupted at any point. It is not the site secret, nor made from it:
that one names every study and can never change; this one changes, and old ones are destroyed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from isocenter.common.errors import KeyUnusable, Misconfigured
from isocenter.common.keys.files import read_mounted, read_own, replace, write_new
from isocenter.common.keys.ports import WrappedKey

KEY_BYTES: Final = 32
_NONCE: Final = 12
_WHAT: Final = "wrapping key"


class KeyFile:
    """A `KeyWrapper`. The file is read again when a row names a key that it did not hold: it was rotated.

    Args:
        path: of the file.
        mounted: an orchestrator made it; else it is ours, and must be closed to others.

    Raises:
        Misconfigured: it is not there, is open to others, or does not hold whole keys.
    """

    def __init__(self, path: Path, *, mounted: bool) -> None:
        self.path = path
        self.mounted = mounted
        self._keys: dict[str, AESGCM] = {}
        self._current = ""
        self._load()

    @classmethod
    def load_or_create(cls, path: Path) -> KeyFile:
        """Ours: made at the first start, mode 0600, durable before it is used."""
        write_new(path, secrets.token_bytes(KEY_BYTES))
        return cls(path, mounted=False)

    @property
    def generations(self) -> int:
        """Keys that the file holds. More than one: a rotation is under way."""
        return len(self._keys)

    def add(self) -> None:
        """Begins a rotation: a new key, from now on the one that wraps. For a file of ours."""
        replace(self.path, self._read() + secrets.token_bytes(KEY_BYTES))
        self._load()

    def drop_old(self) -> None:
        """Ends a rotation: only the key that wraps stays. Backups of the file may hold the others."""
        replace(self.path, self._read()[-KEY_BYTES:])
        self._load()

    async def current(self) -> str:
        return self._current

    async def wrap(self, secret: bytes, binding: bytes) -> tuple[bytes, str]:
        nonce = os.urandom(_NONCE)
        return nonce + self._keys[self._current].encrypt(nonce, secret, binding), self._current

    async def unwrap(self, row: WrappedKey) -> bytes:
        if row.wrapper not in self._keys:
            await asyncio.to_thread(self._load)
        key = self._keys.get(row.wrapper)
        if key is None:
            raise KeyUnusable(
                "a study key is wrapped by a key that this site's key file does not hold",
                study_key=row.study_key,
                wrapper=row.wrapper,
            )
        try:
            return key.decrypt(row.wrapped[:_NONCE], row.wrapped[_NONCE:], row.binding)
        except (InvalidTag, ValueError):
            raise KeyUnusable("a study key does not unwrap", study_key=row.study_key) from None

    async def close(self) -> None:
        """Nothing is held open."""

    def _load(self) -> None:
        data = self._read()
        if not data or len(data) % KEY_BYTES:
            raise Misconfigured(f"{_WHAT} {self.path} must hold keys of {KEY_BYTES} random bytes each")
        parts = [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]
        keys = {_name(part): AESGCM(part) for part in parts}
        if len(keys) != len(parts):
            raise Misconfigured(f"{_WHAT} {self.path} holds a key twice")
        self._keys, self._current = keys, _name(parts[-1])

    def _read(self) -> bytes:
        return read_mounted(self.path, _WHAT) if self.mounted else read_own(self.path, _WHAT)


def _name(key: bytes) -> str:
    """Tells this key from others and gives nothing of it away."""
    return f"file:{hashlib.sha256(b'isocenter/wrapping-key-name/1' + key).hexdigest()[:16]}"
