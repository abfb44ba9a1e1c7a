"""Series manifests: everything a reader needs to know about a series, in one object.

The indexer writes them, the gateway reads them.

Plaintext: zlib-compressed canonical JSON (UTF-8, sorted keys, no spaces):

    {"format": "isocenter.series-manifest", "version": 1,
     "study_key", "series_key", "study_instance_uid", "series_instance_uid",
     "instances": [{"sop_instance_uid", "sop_class_uid", "transfer_syntax_uid", "instance_key", "object_key",
                    "content_digest", "size_bytes", "received_at",
                    "metadata": DICOM JSON with relative BulkDataURI,
                    "frames": packed frame index, base64, empty without pixel data}, ...]}

Instances stand in the order of instance number, then SOP Instance UID. The same instances give the same JSON,
hence the same object key: a series that did not change between two study versions keeps its manifest.
Readers ignore keys they do not know; a change that they must not ignore raises `version`. The head stands
last, so that writer and reader hold the compressed form and one entry, whatever the length of the series.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from isocenter.common.dicom import metadata as dicom_metadata
from isocenter.common.errors import IntegrityError
from isocenter.common.index.records import DicomJson, InstanceRecord
from isocenter.common.keys import SiteKeys

FORMAT = "isocenter.series-manifest"
VERSION = 1
_LEVEL = 6
_BEGIN = '{"instances":['
_PIECE = 64 << 10
_HEAD_BYTES = 4 << 10
_MAX_ENTRY_CHARS = 1 << 30


def canonical(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


class ManifestWriter:
    """Builds one manifest instance by instance: memory holds the compressed form only."""

    def __init__(self, first: InstanceRecord) -> None:
        self.series_key = first.series_key
        self.study_key = first.study_key
        self._compressor = zlib.compressobj(_LEVEL)
        self._digest = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._head = {
            "format": FORMAT,
            "version": VERSION,
            "study_key": first.study_key,
            "series_key": first.series_key,
            "study_instance_uid": first.study_instance_uid,
            "series_instance_uid": first.series_instance_uid,
        }
        self._count = 0
        self._write(_BEGIN)

    def add(self, record: InstanceRecord) -> None:
        """Instances come in order."""
        entry = {
            "sop_instance_uid": record.sop_instance_uid,
            "sop_class_uid": record.sop_class_uid,
            "transfer_syntax_uid": record.transfer_syntax_uid,
            "instance_key": record.instance_key,
            "object_key": record.object_key,
            "content_digest": record.content_digest,
            "size_bytes": record.size_bytes,
            "received_at": record.received_at.isoformat(timespec="microseconds"),
            "metadata": dicom_metadata.decode(record.metadata),
            "frames": base64.b64encode(record.frames).decode(),
        }
        self._write(("," if self._count else "") + canonical(entry))
        self._count += 1

    def finish(self, keys: SiteKeys) -> tuple[str, bytes]:
        """Object key and plaintext."""
        self._write("]," + canonical(self._head).removeprefix("{"))
        self._pieces.append(self._compressor.flush())
        name = keys.document_key(self._digest.hexdigest())
        return f"manifests/{self.study_key}/{self.series_key}/{name}", b"".join(self._pieces)

    def _write(self, text: str) -> None:
        data = text.encode()
        self._digest.update(data)
        self._pieces.append(self._compressor.compress(data))


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One instance of a manifest."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    instance_key: str
    object_key: str
    content_digest: str
    size_bytes: int
    received_at: datetime
    metadata: DicomJson
    frames: bytes


@dataclass(frozen=True, slots=True)
class SeriesManifest:
    study_key: str
    series_key: str
    study_instance_uid: str
    series_instance_uid: str
    instances: tuple[ManifestEntry, ...]


def parse(plaintext: bytes) -> SeriesManifest:
    """Raises IntegrityError for anything that is not a manifest of a version we know."""
    try:
        document = json.loads(zlib.decompress(plaintext))
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise IntegrityError("a manifest of an unknown format or version")
        return SeriesManifest(
            study_key=document["study_key"],
            series_key=document["series_key"],
            study_instance_uid=document["study_instance_uid"],
            series_instance_uid=document["series_instance_uid"],
            instances=tuple(_entry(entry) for entry in document["instances"]),
        )
    except (zlib.error, ValueError, KeyError, TypeError, binascii.Error):
        raise IntegrityError("not a series manifest") from None


def _entry(entry: dict[str, Any]) -> ManifestEntry:
    return ManifestEntry(
        sop_instance_uid=entry["sop_instance_uid"],
        sop_class_uid=entry["sop_class_uid"],
        transfer_syntax_uid=entry["transfer_syntax_uid"],
        instance_key=entry["instance_key"],
        object_key=entry["object_key"],
        content_digest=entry["content_digest"],
        size_bytes=entry["size_bytes"],
        received_at=datetime.fromisoformat(entry["received_at"]),
        metadata=entry["metadata"],
        frames=base64.b64decode(entry["frames"], validate=True),
    )


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
