"""Object Lock: retention, legal hold, and the deletion that both refuse."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from minio.retention import Retention as MinioRetention

from isocenter.common.errors import Misconfigured, NotFound
from isocenter.common.objects.ports import ObjectLocked
from isocenter.common.objects.s3.admin import HOLD, MODE, UNTIL
from isocenter.common.objects.s3.first import FirstVersions
from isocenter.common.objects.s3.headers import OBJECTS
from isocenter.common.objects.s3.wire import Wire

LockMode = Literal["GOVERNANCE", "COMPLIANCE"]


@dataclass(frozen=True, slots=True)
class Retention:
    """What keeps an object from being deleted. `until` of a lock that ran out stays readable."""

    mode: LockMode | None
    until: datetime | None
    hold: bool


class Locks:
    """Of the version that is the object. A bucket made without Object Lock refuses: Misconfigured."""

    def __init__(self, wire: Wire, first: FirstVersions, *, versioned: bool) -> None:
        self._wire = wire
        self._first = first
        self._versioned = versioned

    async def lock(self, key: str, until: datetime, mode: LockMode) -> None:
        """Raises NotFound, ObjectLocked: a COMPLIANCE lock is longer than that, and cannot be shortened."""
        version = await self._first.of(key)
        admin, bucket, name = self._wire.admin, self._wire.bucket, OBJECTS + key
        retention = MinioRetention(mode, until)
        try:
            await self._wire.blocking(
                "lock", name, lambda: admin.set_object_retention(bucket, name, retention, version)
            )
        except Misconfigured as error:
            raise await self._reason(key, version or "", error) from None

    async def hold(self, key: str, *, on: bool) -> None:
        """Raises NotFound."""
        version = await self._first.of(key)
        admin, bucket, name = self._wire.admin, self._wire.bucket, OBJECTS + key
        call = admin.enable_object_legal_hold if on else admin.disable_object_legal_hold
        await self._wire.blocking("lock", name, lambda: call(bucket, name, version))

    async def retention(self, key: str) -> Retention:
        """Raises NotFound."""
        return await self._retention(key, await self._first.of(key))

    async def delete(self, key: str) -> None:
        """Every version and delete marker, or none of them. Raises ObjectLocked."""
        name = OBJECTS + key
        versions = await self._wire.versions(name) if self._versioned else [None]
        if len(versions) > 1:
            await self._require_unlocked(key, [each.id for each in versions if each and not each.marker])
        self._first.forget(key)
        for each in versions:
            try:
                await self._wire.remove(name, each.id if each else "")
            except NotFound:
                continue
            except Misconfigured as error:
                raise await self._reason(key, each.id if each else "", error) from None

    async def _require_unlocked(self, key: str, versions: list[str]) -> None:
        """One locked version keeps all, so that a refused deletion is not half done."""
        admin, bucket = self._wire.admin, self._wire.bucket
        now = await self._wire.blocking("head", "", lambda: admin.server_time(bucket))
        for version in versions:
            found = await self._retention(key, version)
            if found.hold or (found.until is not None and found.until > now):
                raise ObjectLocked("object is under retention or legal hold", key=key)

    async def _retention(self, key: str, version: str | None) -> Retention:
        admin, bucket, name = self._wire.admin, self._wire.bucket, OBJECTS + key
        headers = await self._wire.blocking("lock", name, lambda: admin.lock_headers(bucket, name, version))
        mode, until = headers.get(MODE, "").upper(), headers.get(UNTIL)
        return Retention(
            mode="COMPLIANCE" if mode == "COMPLIANCE" else "GOVERNANCE" if mode == "GOVERNANCE" else None,
            until=None if until is None else lock_time(until),
            hold=headers.get(HOLD, "").upper() == "ON",
        )

    async def _reason(self, key: str, version: str, refused: Misconfigured) -> Exception:
        """Whether it was the lock that refused, or something else."""
        found = await self._retention(key, version or None)
        if found.mode or found.hold:
            return ObjectLocked("object is under retention or legal hold", key=key)
        return refused


def lock_time(text: str) -> datetime:
    """An S3 time, with as many decimals as the server likes: Ceph writes nine."""
    whole, _, rest = text.strip().rstrip("Zz").partition(".")
    return datetime.fromisoformat(f"{whole}.{rest[:6].ljust(6, '0')}+00:00" if rest else f"{whole}+00:00")
