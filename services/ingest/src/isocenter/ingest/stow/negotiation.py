"""What a STOW-RS request sends and wants, from its header fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Final

from isocenter.ingest.stow.response import DICOM_JSON

DICOM: Final = "application/dicom"
MULTIPART: Final = "multipart/related"
MAX_FIELD_CHARS: Final = 2048
"""The parser's time grows with the square of a field's length."""
_MAX_RANGES: Final = 64
# RFC 2046 section 5.1.1: at most 70 of these, a space not last. Orthanc always sends 73: more are taken.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,199}[0-9A-Za-z'()+_,\-./:=?]")


class UnsupportedMediaType(Exception):
    """The body is of a type that is not taken; the text says which are."""


class BadContentType(Exception):
    """The Content-Type field cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class BodyType:
    """`boundary` is None for a body that is one instance."""

    boundary: str | None


def body_type(content_type: str | None, content_encoding: str | None) -> BodyType:
    """Raises UnsupportedMediaType, BadContentType."""
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise UnsupportedMediaType("Content-Encoding is not supported: send the instances as they are.")
    kind, parameters = parse_media_type(content_type or "")
    if kind == DICOM:
        return BodyType(None)
    if kind != MULTIPART:
        raise UnsupportedMediaType(f'Send multipart/related; type="{DICOM}", or {DICOM}.')
    # A sender that leaves `type` out is understood; each part says what it is.
    if parameters.get("type", DICOM).lower() != DICOM:
        raise UnsupportedMediaType(f'The root type of multipart/related must be "{DICOM}".')
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadContentType("multipart/related needs a boundary of 1 to 70 characters (RFC 2046).")
    return BodyType(boundary)


def parse_media_type(value: str) -> tuple[str, dict[str, str]]:
    """Type in lower case, and its parameters without quotes; no type for a field that is too long."""
    if len(value) > MAX_FIELD_CHARS:
        return "", {}
    message = Message()
    message["content-type"] = value.replace("\r", " ").replace("\n", " ")
    parameters = message.get_params(failobj=[])
    kind = parameters[0][0].strip().lower() if parameters else ""
    # `name*=charset''text` (RFC 2231) comes as a tuple.
    return kind, {name.lower(): collapse_rfc2231_value(text) for name, text in parameters[1:]}


def accepts_dicom_json(accept: str | None) -> bool:
    """Whether the only representation there is may be sent; without Accept it may (RFC 9110 12.5.1)."""
    if accept is None or not accept.strip():
        return True
    best: tuple[int, float] = (-1, 0.0)
    for item in accept.split(",")[:_MAX_RANGES]:
        kind, parameters = parse_media_type(item)
        specificity = {DICOM_JSON: 2, "application/json": 2, "application/*": 1, "*/*": 0}.get(kind)
        if specificity is None:
            continue
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            continue
        best = max(best, (specificity, quality))
    return best[1] > 0
