"""The file format of the local store: payload, then a JSON document, then a footer of fixed size.

    payload | JSON | payload size (8) | JSON size (4) | SHA-256 of payload | SHA-256 of JSON and sizes |
    magic (8)

Payload offsets are file offsets. Metadata and bytes become visible in one act, and a file that was cut or
overwritten anywhere behind its payload is recognised without reading the payload.
"""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import datetime
from typing import Final

from isocenter.common.errors import IntegrityError
from isocenter.common.objects.ports import ObjectInfo

MAGIC: Final = b"ISOCOBJ1"
FOOTER: Final = struct.Struct(">QI32s32s8s")
TAIL_BYTES: Final = 4096
"""Reading this much from the end gets the whole trailer in one go, but for unusually large metadata."""

_MAX_DOCUMENT_BYTES: Final = 64 << 10


def encode_trailer(info: ObjectInfo) -> bytes:
    document = json.dumps(
        {"key": info.key, "metadata": dict(info.metadata), "stored_at": info.stored_at.isoformat()},
        separators=(",", ":"),
    ).encode()
    digest = bytes.fromhex(info.sha256)
    return document + FOOTER.pack(info.size, len(document), digest, _seal(document, info.size, digest), MAGIC)


def trailer_size(tail: bytes, key: str | None) -> int:
    """Bytes of JSON and footer, from the last bytes of a file.

    Raises:
        IntegrityError: there is no footer of ours.
    """
    if len(tail) < FOOTER.size or not tail.endswith(MAGIC):
        raise IntegrityError("object file has no trailer", key=key or "")
    document_size = int(FOOTER.unpack(tail[-FOOTER.size :])[1])
    if document_size > _MAX_DOCUMENT_BYTES:
        raise IntegrityError("object trailer is damaged", key=key or "")
    return FOOTER.size + document_size


def decode_trailer(trailer: bytes, file_size: int, key: str | None) -> ObjectInfo:
    """What the trailer says. Without `key` its word is taken for it.

    Raises:
        IntegrityError: it contradicts its own checksum, the file's size or the file's place.
    """
    payload_size, document_size, digest, seal, _ = FOOTER.unpack(trailer[-FOOTER.size :])
    document = trailer[: -FOOTER.size]
    if len(document) != document_size or payload_size + len(trailer) != file_size:
        raise IntegrityError("object file has not the size its trailer says", key=key or "")
    if seal != _seal(document, payload_size, digest):
        raise IntegrityError("object trailer does not match its checksum", key=key or "")
    fields = json.loads(document)
    if key is not None and fields["key"] != key:
        raise IntegrityError("object file lies under another key than it was stored under", key=key)
    return ObjectInfo(
        key=fields["key"],
        size=payload_size,
        sha256=digest.hex(),
        metadata=fields["metadata"],
        stored_at=datetime.fromisoformat(fields["stored_at"]),
    )


def _seal(document: bytes, payload_size: int, digest: bytes) -> bytes:
    sizes = struct.pack(">QI", payload_size, len(document))
    return hashlib.sha256(document + sizes + digest).digest()
