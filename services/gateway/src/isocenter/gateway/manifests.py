"""Reading series manifests: one object that holds the metadata of every instance of a settled series.

The indexer writes them, in instance order: zlib-compressed JSON that begins with `{"instances":[` and ends
with the head, in which `format` and `version` say what it is. Entries are decoded one by one, so that memory
holds the compressed form and one entry, whatever the length of the series.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from isocenter.common.errors import IntegrityError

FORMAT = "isocenter.series-manifest"
VERSION = 1
_BEGIN = '{"instances":['
_PIECE = 64 << 10
_HEAD_BYTES = 4 << 10
_MAX_ENTRY_CHARS = 1 << 30


def entries(plaintext: bytes) -> Iterator[dict[str, Any]]:
    """Each instance's entry: `sop_instance_uid`, `metadata` (DICOM JSON, relative BulkDataURI) and more.

    Raises:
        IntegrityError: not a manifest of a version that this release reads.
    """
    try:
        _check_head(plaintext)
        yield from _entries(plaintext)
    except (zlib.error, ValueError, TypeError, KeyError):
        raise IntegrityError("not a series manifest") from None


def _check_head(plaintext: bytes) -> None:
    """The head comes last: inflates everything once and keeps the end."""
    tail = b""
    for piece in _inflated(plaintext):
        tail = (tail + piece)[-_HEAD_BYTES:]
    head = json.loads("{" + tail[tail.rindex(b"],") + 2 :].decode())
    if head["format"] != FORMAT or head["version"] != VERSION:
        raise IntegrityError("a manifest of another format or version")


def _entries(plaintext: bytes) -> Iterator[dict[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    pieces = _inflated(plaintext)
    text = next(pieces).decode()  # the writer's JSON is ASCII: no character is ever cut
    if not text.startswith(_BEGIN):
        raise ValueError
    position, wanted = len(_BEGIN), 1
    while True:
        if text[position : position + 1] == "]":
            return
        try:
            entry, end = decode(text, position)
            complete = end < len(text)
        except json.JSONDecodeError:
            complete = False
        if complete:
            yield entry
            position = end + 1 if text[end] == "," else end
            wanted = 1
            continue
        # Twice as much each time: an entry of any size is scanned a bounded number of times.
        more = "".join(piece.decode() for _, piece in zip(range(wanted), pieces, strict=False))
        if not more or len(text) - position > _MAX_ENTRY_CHARS:
            raise ValueError
        text, position, wanted = text[position:] + more, 0, wanted * 2


def _inflated(plaintext: bytes) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    pending = plaintext
    while not inflater.eof:
        piece = inflater.decompress(pending, _PIECE)
        pending = inflater.unconsumed_tail
        if not piece:
            raise ValueError
        yield piece
