"""What an S3 server or the way to it says, as errors of the platform."""

from __future__ import annotations

import re
from typing import Final

from minio.error import InvalidResponseError, S3Error, ServerError
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from urllib3.exceptions import HTTPError

from isocenter.common.errors import IsocenterError, Misconfigured, NotFound, StoreFull, StoreUnavailable

CLIENT_ERRORS: Final = (BaseError, FileNotFoundError, S3Error, ServerError, InvalidResponseError, HTTPError)
"""Everything that obstore and minio raise for a request."""

_FULL: Final = {
    "EDQUOT",
    "InsufficientStorage",
    "QuotaExceeded",
    "StorageFull",
    "StorageQuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
_CREDENTIALS: Final = {"AuthorizationHeaderMalformed", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_MISSING: Final = {"NoSuchKey", "NoSuchVersion"}
_CODE: Final = re.compile(r"<Code>(\w{1,64})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_RETRIED: Final = {408, 409, 429}


class Exists(Exception):
    """A conditional put found something under its name. Never leaves this package."""


def translated(error: Exception, key: str) -> Exception:
    """The error of the platform; its text never quotes the server's, which may hold names of anything."""
    status, code = status_and_code(error)
    if isinstance(error, AlreadyExistsError | PreconditionError) or code == "PreconditionFailed":
        return Exists(key)
    if status == 507 or code in _FULL:
        return StoreFull("the object store has no space", cause=code or str(status))
    if code == "NoSuchBucket":
        return Misconfigured("the bucket does not exist: `isocenter bucket apply` makes it")
    if isinstance(error, FileNotFoundError) or code in _MISSING or status == 404:
        return NotFound("no such object", key=key)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in {401, 403}:
        return _refused(code or str(status or 403))
    if status is not None and 400 <= status < 500 and status not in _RETRIED:
        return Misconfigured("the object store does not take the request", cause=code or str(status))
    return StoreUnavailable("the object store does not answer as it must", cause=code or _kind(error, status))


def status_and_code(error: Exception) -> tuple[int | None, str]:
    """HTTP status, and S3's error code where there is one."""
    if isinstance(error, S3Error):
        return error.response.status, error.code or ""
    if isinstance(error, ServerError):
        return error.status_code, ""
    if isinstance(error, InvalidResponseError):
        found = re.search(r"status code: (\d{3})|: (\d{3})", str(error))
        return (int(found[1] or found[2]) if found else None), ""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    return (int(status[1]) if status else None), (code[1] if code else "")


def _refused(code: str) -> IsocenterError:
    if code == "RequestTimeTooSkewed":
        return Misconfigured("this machine's clock and the object store's differ too much", cause=code)
    if code in _CREDENTIALS:
        return Misconfigured("the object store does not know these credentials", cause=code)
    return Misconfigured("the object store refuses access with these credentials", cause=code)


def _kind(error: Exception, status: int | None) -> str:
    """A word for the log; a client's own text may quote URLs."""
    if status is not None:
        return str(status)
    text = str(error).lower()
    for word, kind in (("timed out", "timeout"), ("timedout", "timeout"), ("refused", "refused")):
        if word in text:
            return kind
    return type(error).__name__
