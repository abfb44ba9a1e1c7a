"""Accept: which representation a client gets (PS3.18 section 8.7, RFC 9110 section 12.5.1).

The rules of this release:

* no Accept header is read as `*/*` (the standard answers 406; too many clients send none);
* `transfer-syntax=*` or no transfer syntax means "as stored": nothing is transcoded, so a transfer syntax
  that is asked for and not held is 406;
* `multipart/related; type="application/octet-stream"; transfer-syntax=*` for frames means "whatever is
  stored": compressed frames then come under their own media type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from isocenter.common.dicom import uids
from isocenter.gateway.domain import not_acceptable

DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
DICOM = "application/dicom"
OCTET_STREAM = "application/octet-stream"
JSON = "application/json"
MULTIPART = "multipart/related"

_MAX_RANGES = 64
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z/:]+"  # noqa: S105 - a grammar; "/" and ":" for clients that do not quote
# No space before the ";": a search would try a run of them from each of its positions.
_PARAMETER = re.compile(rf';\s*({_TOKEN})\s*=\s*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")')
_TYPE = re.compile(rf"\s*({_TOKEN})")

_TRANSFER_SYNTAX_PREFIX = "1.2.840.10008.1.2."
_FRAME_MEDIA = {
    "image/jpeg": ("4.50", "4.51", "4.57", "4.70"),
    "image/dicom-rle": ("5",),
    "image/jls": ("4.80", "4.81"),
    "image/jp2": ("4.90", "4.91"),
    "image/jpx": ("4.92", "4.93"),
    "image/jphc": ("4.201", "4.202", "4.203"),
    "image/jxl": ("4.110", "4.111", "4.112"),
}
_MEDIA_OF_SYNTAX = {
    _TRANSFER_SYNTAX_PREFIX + suffix: media for media, suffixes in _FRAME_MEDIA.items() for suffix in suffixes
}
_ALIASES = {"image/x-dicom-rle": "image/dicom-rle", "image/x-jls": "image/jls"}
"""Names that clients wrote before the types were registered."""

_LITTLE_ENDIAN = {
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
}


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One element of an Accept field, names in lower case."""

    media_type: str
    parameters: dict[str, str] = field(default_factory=dict)
    quality: float = 1.0

    @property
    def inner(self) -> str:
        """The type of a multipart's parts; `*/*` where the client does not say."""
        inner = self.parameters.get("type", "*/*").lower()
        return _ALIASES.get(inner, inner)

    @property
    def transfer_syntax(self) -> str | None:
        """None where any will do."""
        value = self.parameters.get("transfer-syntax", "*").strip()
        return None if value in {"*", ""} else value


def parse_accept(text: str | None) -> list[MediaRange]:
    """Media ranges, the preferred ones first; elements that cannot be read are left out."""
    if text is None or not text.strip():
        return [MediaRange("*/*")]
    found = []
    for element in _split(text)[:_MAX_RANGES]:
        start = _TYPE.match(element)
        if start is None:
            continue
        parameters: dict[str, str] = {}
        for name, token, quoted in _PARAMETER.findall(element, start.end()):
            parameters.setdefault(name.lower(), token or re.sub(r"\\(.)", r"\1", quoted))
        media_type = start[1].lower()
        try:
            quality = min(1.0, max(0.0, float(parameters.pop("q", "1"))))
        except ValueError:
            continue
        if quality > 0:
            found.append(MediaRange(_ALIASES.get(media_type, media_type), parameters, quality))
    return sorted(found, key=lambda element: -element.quality)


def _split(text: str) -> list[str]:
    """Elements of a comma separated field; commas inside quoted strings do not count."""
    return re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', text)


def covers(pattern: str, media_type: str) -> bool:
    """True if the range (`*/*`, `image/*`, `image/jpeg`) includes the type."""
    if pattern in {"*/*", "*", media_type}:
        return True
    return pattern.endswith("/*") and media_type.startswith(pattern[:-1])


class Document(StrEnum):
    """Representations of search results and metadata."""

    DICOM_JSON = DICOM_JSON
    JSON = JSON
    XML = DICOM_XML


def choose_document(accept: str | None) -> Document:
    """Representation for a search or metadata.

    Raises:
        Problem: 406.
    """
    for wanted in parse_accept(accept):
        if wanted.media_type in {MULTIPART, "multipart/*"}:
            if covers(wanted.inner, DICOM_XML):
                return Document.XML
        elif covers(wanted.media_type, DICOM_JSON):
            return Document.DICOM_JSON
        elif wanted.media_type == JSON:
            return Document.JSON
    raise not_acceptable(
        f'Offered: {DICOM_JSON}, {JSON}, and {MULTIPART}; type="{DICOM_XML}".',
    )


@dataclass(frozen=True, slots=True)
class Packaging:
    """How payloads are sent, and the transfer syntaxes the client takes (None: any)."""

    multipart: bool
    transfer_syntaxes: frozenset[str] | None

    def takes(self, transfer_syntax_uid: str) -> bool:
        return self.transfer_syntaxes is None or transfer_syntax_uid in self.transfer_syntaxes


def choose_instances(accept: str | None, *, single: bool) -> Packaging:
    """Representation for whole instances; `single` where the resource is one instance.

    Raises:
        Problem: 406 if the client takes neither multipart nor (for one instance) application/dicom.
    """
    multipart: bool | None = None
    syntaxes: set[str | None] = set()
    for wanted in parse_accept(accept):
        is_multipart = wanted.media_type in {"*/*", "*", "multipart/*", MULTIPART}
        matches = covers(wanted.inner if is_multipart else wanted.media_type, DICOM)
        if matches and (is_multipart or single) and multipart in {None, is_multipart}:
            multipart = is_multipart
            syntaxes.add(wanted.transfer_syntax)
    if multipart is None:
        alone = f", and {DICOM} for one instance" if single else ""
        raise not_acceptable(f'Offered: {MULTIPART}; type="{DICOM}"{alone}.')
    named = frozenset(uid for uid in syntaxes if uid is not None)
    return Packaging(multipart, None if None in syntaxes else named)


def frame_media_type(transfer_syntax_uid: str) -> str:
    """Media type of one frame as it is stored (PS3.18 table 8.7.3-5)."""
    return _MEDIA_OF_SYNTAX.get(transfer_syntax_uid, OCTET_STREAM)


def frame_transfer_syntax(transfer_syntax_uid: str) -> str:
    """Transfer syntax that describes the bytes of one frame or bulk value once taken out of its data set.

    Implicit and deflated little endian leave the same bytes as Explicit VR Little Endian.
    """
    return uids.EXPLICIT_VR_LITTLE_ENDIAN if transfer_syntax_uid in _LITTLE_ENDIAN else transfer_syntax_uid


def choose_frames(accept: str | None, transfer_syntax_uid: str, *, single: bool) -> bool:
    """True for multipart, False for a single part. `single` where one frame was asked for.

    Raises:
        Problem: 406, saying what is held.
    """
    media_type = frame_media_type(transfer_syntax_uid)
    held = {transfer_syntax_uid, frame_transfer_syntax(transfer_syntax_uid)}
    for wanted in parse_accept(accept):
        is_multipart = wanted.media_type in {"*/*", "*", "multipart/*", MULTIPART}
        inner = wanted.inner if is_multipart else wanted.media_type
        if not is_multipart and not single:
            continue
        as_stored = wanted.parameters.get("transfer-syntax") == "*"
        if not covers(inner, media_type) and not (inner == OCTET_STREAM and as_stored):
            continue
        if wanted.transfer_syntax is None or wanted.transfer_syntax in held:
            return is_multipart
    alone = f" or {media_type}" if single else ""
    syntax = frame_transfer_syntax(transfer_syntax_uid)
    raise not_acceptable(
        f'Held: {MULTIPART}; type="{media_type}"; transfer-syntax={syntax}{alone}.'
        " This release does not transcode; transfer-syntax=* takes what is held."
    )


def choose_bulk(accept: str | None) -> bool:
    """True for multipart, False for the single part that is the default here.

    Raises:
        Problem: 406.
    """
    for wanted in parse_accept(accept):
        if wanted.media_type in {MULTIPART, "multipart/*"}:
            if covers(wanted.inner, OCTET_STREAM):
                return True
        elif covers(wanted.media_type, OCTET_STREAM):
            return False
    raise not_acceptable(f'Offered: {OCTET_STREAM}, and {MULTIPART}; type="{OCTET_STREAM}".')
