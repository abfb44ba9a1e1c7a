"""The metadata of an instance at rest: DICOM JSON (PS3.18 annex F), compressed with zlib."""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

from isocenter.common.errors import IntegrityError

BULK_PREFIX: Final = "bulkdata/"
"""BulkDataURIs are relative to the instance: `bulkdata/` and the path of the element."""

_MAX_DOCUMENT_BYTES: Final = 1 << 30
_LEVEL: Final = 3  # half the time of zlib's default for 5 % more bytes


def encode(document: dict[str, Any]) -> bytes:
    """Compressed UTF-8 JSON, without spaces; the same document always gives the same bytes."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, sort_keys=True, allow_nan=False)
    # Lone surrogates come from broken character sets; JSON text cannot hold them.
    return zlib.compress(text.encode("utf-8", "replace"), _LEVEL)


def decode(data: bytes) -> dict[str, Any]:
    """The document.

    Raises:
        IntegrityError: the bytes are no metadata document, or one of more than 1 GiB.
    """
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(data, _MAX_DOCUMENT_BYTES)
        if not inflate.eof:
            raise IntegrityError("instance metadata is cut short or too large")
        document = json.loads(text)
    except (zlib.error, ValueError):
        raise IntegrityError("instance metadata cannot be read") from None
    if not isinstance(document, dict):
        raise IntegrityError("instance metadata is no DICOM JSON object")
    return document
