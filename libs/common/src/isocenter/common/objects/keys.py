"""The form of object keys and object metadata, the same for every store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from isocenter.common.errors import Permanent

MAX_KEY_LENGTH: Final = 255
MAX_METADATA_BYTES: Final = 1536
"""S3 takes 2 KiB, and the store's own entries are among them."""

# A segment becomes a file name, with room for a suffix; S3 allows far more.
_SEGMENT: Final = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,199}")
_PREFIX: Final = re.compile(r"[a-z0-9/._-]*")
_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")


class InvalidObject(Permanent):
    """A key or metadata that no store takes: the caller's mistake, and never retried."""

    code = "invalid-object"


def check_key(key: str) -> str:
    """The key itself, if every `/`-separated segment is lower-case, without leading dot, and short.

    Raises:
        InvalidObject: the key could leave its directory or be refused by a store.
    """
    if len(key) > MAX_KEY_LENGTH or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidObject("object key breaks the rules for keys")
    return key


def check_prefix(prefix: str) -> str:
    """Raises InvalidObject for characters that no key has."""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidObject("prefix has characters that no object key has")
    return prefix


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy, if names are snake_case, values printable ASCII and the whole at most MAX_METADATA_BYTES.

    Raises:
        InvalidObject
    """
    size = 0
    for name, value in metadata.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InvalidObject("object metadata must be snake_case names and printable ASCII values")
        size += len(name) + len(value)
    if size > MAX_METADATA_BYTES:
        raise InvalidObject("object metadata is too large")
    return dict(metadata)
