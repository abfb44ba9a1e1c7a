"""What a bucket and its server do, asked and tried when a store is opened."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from isocenter.common.errors import IsocenterError, Misconfigured
from isocenter.common.objects.s3.errors import Exists
from isocenter.common.objects.s3.headers import CHECK
from isocenter.common.objects.s3.wire import Wire


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the bucket and its server do, found out when the store is opened.

    Attributes:
        versioned: the bucket keeps every version.
        object_lock: versions can be locked and held.
        conditional_put: the server enforces `If-None-Match: *` in this bucket.
    """

    versioned: bool
    object_lock: bool
    conditional_put: bool


async def ask(wire: Wire) -> Capabilities:
    """Writes and removes a small object or two.

    Raises:
        Misconfigured, StoreFull, StoreUnavailable
    """
    admin, bucket = wire.admin, wire.bucket
    state = await wire.blocking("check", "", lambda: admin.versioning(bucket))
    if state == "Suspended":
        raise Misconfigured("versioning of the bucket is suspended: enable it, or use another bucket")
    versioned = state == "Enabled"
    lock = versioned and await wire.blocking("check", "", lambda: admin.locks_objects(bucket))
    conditional = await _looks_before_it_writes(wire)
    if not versioned and not conditional:
        raise Misconfigured("the object store overwrites: it ignores If-None-Match and keeps no versions")
    return Capabilities(versioned=versioned, object_lock=lock, conditional_put=conditional)


async def _looks_before_it_writes(wire: Wire) -> bool:
    name = CHECK + secrets.token_hex(12)
    versions = [await wire.put(name, b"1", create=True)]
    try:
        versions.append(await wire.put(name, b"2", create=True))
    except Exists:
        return True
    else:
        return False
    finally:
        for version in versions:
            await wire.remove(name, version or "")


async def remove_unfinished(wire: Wire) -> None:
    """Best effort: what these parts cost is space, and not every account may list them."""
    age = timedelta(seconds=wire.limits.upload_age)
    with suppress(IsocenterError):
        await wire.blocking(
            "sweep",
            "",
            lambda: wire.admin.abort_uploads(wire.bucket, wire.admin.server_time(wire.bucket) - age),
        )
