"""What an object carries in its headers, and where things lie in the bucket.

`objects/<key>` holds objects; `pending/` what was committed and not yet announced; `check/` what a health
check writes for a moment; `damaged/` what was healed, for an operator.
Metadata names become header names with `-` for `_`, because some proxies drop headers with an underscore.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import unquote

from isocenter.common.errors import IntegrityError
from isocenter.common.objects.keys import InvalidObject
from isocenter.common.objects.ports import ObjectInfo

OBJECTS: Final = "objects/"
PENDING: Final = "pending/"
CHECK: Final = "check/"
DAMAGED: Final = "damaged/"

MAX_HEADER_BYTES: Final = 2 << 10
"""S3's limit for names and values of user metadata together."""

_OURS: Final = "m-"
"""Before every name that is not the store's own."""
_EMPTY: Final = "%"
# Spaces at the ends are trimmed on the way, and runs of them may become one.
_ESCAPED: Final = re.compile(r"%|^ | $|(?<= ) ")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the store itself writes beside the metadata.

    Attributes:
        sha256: lower-case hex of the payload.
        put: random; tells a writer that an object it finds is the one it wrote itself.
        replaces: id of the damaged version that this one heals, or "".
    """

    sha256: str
    put: str
    replaces: str = ""


def encode(info: ObjectInfo, stamp: Stamp) -> dict[str, str]:
    """Header names (without `x-amz-meta-`) and values.

    Raises:
        InvalidObject: more than S3 takes.
    """
    headers = {"sha256": stamp.sha256, "put": stamp.put, "stored-at": info.stored_at.isoformat()}
    if stamp.replaces:
        headers["replaces"] = stamp.replaces
    for name, value in info.metadata.items():
        escaped = _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", value)
        headers[f"{_OURS}{name.replace('_', '-')}"] = escaped or _EMPTY
    if sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADER_BYTES:
        raise InvalidObject("object metadata is too large for S3")
    return headers


def decode(key: str, size: int, headers: Mapping[str, str]) -> tuple[ObjectInfo, Stamp]:
    """The object that the headers describe.

    Raises:
        IntegrityError: nothing of ours wrote it.
    """
    try:
        stamp = Stamp(headers["sha256"], headers["put"], headers.get("replaces", ""))
        stored_at = datetime.fromisoformat(headers["stored-at"])
    except (KeyError, ValueError):
        raise IntegrityError("object does not carry what the store writes beside it", key=key) from None
    metadata = {
        name.removeprefix(_OURS).replace("-", "_"): "" if value == _EMPTY else unquote(value)
        for name, value in headers.items()
        if name.startswith(_OURS)
    }
    return ObjectInfo(key, size, stamp.sha256, metadata, stored_at), stamp
