"""The site secret and the opaque keys made from it."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from isocenter.common.errors import Misconfigured

SECRET_BYTES = 32

_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = tuple(high + low for high in _DIGITS for low in _DIGITS)
"""Two digits of base32 at a time: several keys are made for each instance."""


class SiteKeys:
    """Keyed hashes of DICOM UIDs: deterministic for a site, meaningless without its secret.

    A key is the first 128 bits of HMAC-SHA-256(site secret, purpose NUL parts), base32, lower case, 26
    characters.
    The purpose separates the name spaces: a study's key can never equal an instance's.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES:
            raise Misconfigured(f"the site secret must have at least {SECRET_BYTES} bytes")
        self._secret = secret

    @classmethod
    def load_or_create(cls, path: Path) -> SiteKeys:
        """Reads the key file, or creates it (mode 0600, durable before it is used).

        Raises:
            Misconfigured: the file can be read by group or others, or is too short.
        """
        with contextlib.suppress(FileExistsError):
            _create_secret(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise Misconfigured(f"site secret {path} has mode {mode:04o}: run chmod 600 on it")
        return cls(path.read_bytes())

    @classmethod
    def load(cls, path: Path) -> SiteKeys:
        """Reads a key file that an orchestrator put there. Secrets that it mounts are often readable by the
        group of the pod, or by all inside it, so reading is not refused; writing is.

        Raises:
            Misconfigured: it is not there, can be written by group or others, or is too short.
        """
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            secret = path.read_bytes()
        except OSError as error:
            raise Misconfigured(f"site secret {path} cannot be read: {error.strerror}") from None
        if mode & 0o022:
            raise Misconfigured(f"site secret {path} has mode {mode:04o}: others can replace it")
        return cls(secret)

    def fingerprint(self) -> str:
        """Tells this secret from others and gives nothing of it away."""
        return self._key("fingerprint")

    def study_key(self, study_instance_uid: str) -> str:
        return self._key("study", study_instance_uid)

    def series_key(self, series_instance_uid: str) -> str:
        return self._key("series", series_instance_uid)

    def instance_key(self, sop_instance_uid: str) -> str:
        return self._key("instance", sop_instance_uid)

    def transfer_key(self, transfer_id: str) -> str:
        """A partition key for a refused instance whose study is not known."""
        return self._key("transfer", transfer_id)

    def object_key(self, sop_instance_uid: str, transfer_syntax_uid: str, content_digest: str) -> str:
        """Content address of an instance: same UID, encoding and data set bytes give the same object.

        File meta information is left out on purpose: it differs between C-STORE (ours) and STOW-RS (the
        sender's) although the instance is the same. See docs/adr/0003.
        """
        name = self._key("object", sop_instance_uid, transfer_syntax_uid, content_digest)
        # 32 directories: room for millions of names each, and few enough that creating them, at the cost of
        # a sync each, is over after the first instances.
        return f"instances/{name[:1]}/{name}"

    def document_key(self, content_digest: str) -> str:
        """Name of a document by its content (manifests, revisions): a plain hash would let others test
        guesses.
        """
        return self._key("document", content_digest)

    def derived(self, purpose: str) -> bytes:
        """A key of 256 bits for one purpose: nothing is learnt from it of the secret, or of other keys."""
        return hmac.digest(self._secret, f"derived\0{purpose}".encode(), "sha256")

    def _key(self, purpose: str, *parts: str) -> str:
        message = "\0".join((purpose, *parts)).encode()
        digest = hmac.digest(self._secret, message, "sha256")[:16]
        number = int.from_bytes(digest, "big") << 2  # 26 digits of 5 bits
        return "".join([_PAIRS[number >> shift & 0x3FF] for shift in range(120, -1, -10)])


def _create_secret(path: Path) -> None:
    """Writes a new secret under a temporary name and links it into place: never a half-written secret."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(SECRET_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
