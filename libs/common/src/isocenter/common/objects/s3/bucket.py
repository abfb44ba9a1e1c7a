"""The bucket of a site, made as it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minio.commonconfig import ENABLED
from minio.error import S3Error
from minio.versioningconfig import VersioningConfig

from isocenter.common.errors import Misconfigured
from isocenter.common.objects.s3.admin import Admin
from isocenter.common.objects.s3.errors import CLIENT_ERRORS, translated
from isocenter.common.settings import S3Settings

_OURS_ALREADY = "BucketAlreadyOwnedByYou"


@dataclass(frozen=True, slots=True)
class BucketState:
    """A bucket after `ensure_bucket`. `created`: it was not there before."""

    name: str
    created: bool
    versioned: bool
    object_lock: bool


def ensure_bucket(settings: S3Settings, *, object_lock: bool) -> BucketState:
    """Creates the bucket if it is not there: with versions and Object Lock, or plain. Idempotent; blocking.

    No default retention is set: what keeps an object, and how long, is decided for each.

    Raises:
        Misconfigured: the bucket is there without the Object Lock that was asked for (most servers cannot
            turn it on later), or the credentials do not suffice.
        StoreUnavailable
    """
    admin = Admin.of(settings)
    try:
        return _ensure(admin, settings, object_lock=object_lock)
    except CLIENT_ERRORS as error:
        raise translated(error, "") from None


def _ensure(admin: Admin, settings: S3Settings, *, object_lock: bool) -> BucketState:
    bucket = settings.bucket
    created = not admin.bucket_exists(bucket)
    if created:
        created = _made_here(lambda: admin.make_bucket(bucket, settings.region, object_lock=object_lock))
    locks = admin.locks_objects(bucket)
    if object_lock and not locks:
        raise Misconfigured("the bucket was made without Object Lock: name another bucket, and migrate")
    if object_lock and admin.versioning(bucket) != ENABLED:
        admin.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    versioned = admin.versioning(bucket) == ENABLED
    return BucketState(bucket, created=created, versioned=versioned, object_lock=locks)


def _made_here(make: Callable[[], None]) -> bool:
    """False: another did at the same moment."""
    try:
        make()
    except S3Error as error:
        if error.code != _OURS_ALREADY:
            raise
        return False
    return True
