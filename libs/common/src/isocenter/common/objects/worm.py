"""Whether an object store keeps what it locks: twelve cases, mostly attempts to destroy a locked object.

A server can accept Object Lock and not enforce it, or enforce one call and forget the others. So nothing
counts here that was only answered: after each attempt the version must still be there, byte for byte, with
its lock.
"""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from minio.commonconfig import COMPLIANCE, ENABLED, GOVERNANCE, Filter
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, NoncurrentVersionExpiration, Rule
from minio.retention import Retention
from minio.versioningconfig import SUSPENDED, VersioningConfig

from isocenter.common.errors import StoreUnavailable
from isocenter.common.objects.s3.admin import HOLD, MODE, UNTIL, Admin
from isocenter.common.objects.s3.errors import CLIENT_ERRORS, status_and_code, translated
from isocenter.common.objects.s3.locks import lock_time
from isocenter.common.settings import S3Settings

_CONTENT: Final = b"written once"
_LOCK_OFF: Final = (
    b"<ObjectLockConfiguration><ObjectLockEnabled>Disabled</ObjectLockEnabled></ObjectLockConfiguration>",
    b"<ObjectLockConfiguration><ObjectLockEnabled></ObjectLockEnabled></ObjectLockConfiguration>",
    b"<ObjectLockConfiguration></ObjectLockConfiguration>",
)
_CONTROL: Final = "lifecycle-control"
_SLACK_SECONDS: Final = 2
"""After a lock has run out; servers count whole seconds."""


class WormCase(StrEnum):
    """What is tried. The value is the name in reports."""

    meaning: str
    required: bool

    def __new__(cls, value: str, meaning: str, required: bool = True) -> WormCase:  # noqa: PYI034 - as StrEnum does
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.required = required
        return member

    DELETE_VERSION = "delete-version", "deleting the locked version is refused"
    DELETE_BYPASS = "delete-bypass", "so it is with the header that bypasses governance"
    SHORTEN = "shorten", "a COMPLIANCE lock cannot be made shorter"
    DOWNGRADE = "downgrade", "nor become GOVERNANCE, and then be bypassed"
    SUSPEND_VERSIONING = "suspend-versioning", "versioning cannot be suspended"
    DISABLE_LOCK = "disable-lock", "Object Lock cannot be turned off for the bucket"
    MULTI_DELETE = "multi-delete", "deleting many at once does not delete the locked version"
    OVERWRITE = "overwrite", "writing under the same key adds a version and leaves the locked one"
    LEGAL_HOLD = "legal-hold", "a held version withstands every kind of delete, without retention, too"
    LIFECYCLE = "lifecycle", "an expiry rule does not remove the locked version while the probe runs"
    CONDITIONAL_PUT = "conditional-put", "If-None-Match is enforced with the lock on", False
    EXPIRED = "expired", "when the lock has run out, deleting works"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """`seen` says what the server did."""

    case: WormCase
    passed: bool
    seen: str


@dataclass(frozen=True, slots=True)
class WormReport:
    """`left` names the scratch bucket if it could not be removed, else it is ""."""

    endpoint: str
    results: tuple[CaseResult, ...]
    left: str = ""

    @property
    def passed(self) -> bool:
        """Whether a tier on this server may call itself WORM: every required case."""
        return all(result.passed for result in self.results if result.case.required)


def probe(
    settings: S3Settings,
    *,
    lock_seconds: float = 60,
    wait: Callable[[float], None] = time.sleep,
    tell: Callable[[CaseResult], None] = lambda result: None,
) -> WormReport:
    """Makes a bucket `isocenter-probe-...`, tries, waits for its locks to run out, and removes it. Blocking.

    Args:
        settings: endpoint and credentials; the bucket named there is not touched.
        lock_seconds: must be longer than all attempts together take.
        wait: until the locks have run out.
        tell: is called with each result.

    Raises:
        Misconfigured: the credentials may not make a bucket.
        StoreUnavailable: no answer, or the attempts took longer than the locks.
    """
    run = _Run(Admin.of(settings), settings.region, tell)
    try:
        results, left = run.all(lock_seconds, wait)
    except CLIENT_ERRORS as error:
        raise translated(error, "") from None
    return WormReport(settings.endpoint or "", results, left)


class _Run:
    def __init__(self, admin: Admin, region: str, tell: Callable[[CaseResult], None]) -> None:
        self._admin = admin
        self._region = region
        self._tell = tell
        self._bucket = f"isocenter-probe-{secrets.token_hex(8)}"
        self._until: datetime
        self._results: list[CaseResult] = []
        self._rule: tuple[str | None, str] = (None, "")

    def all(self, lock_seconds: float, wait: Callable[[float], None]) -> tuple[tuple[CaseResult, ...], str]:
        try:
            self._admin.make_bucket(self._bucket, self._region, object_lock=True)
        except (S3Error, InvalidResponseError) as error:
            status, code = status_and_code(error)
            if status in {401, 403} or status is None or (status >= 500 and status != 501):
                raise  # says nothing about locks
            self._without_lock(f"a bucket with Object Lock cannot be made ({code or status})")
            return tuple(self._results), ""
        try:
            # Whole seconds: some servers keep no more.
            now = self._admin.server_time(self._bucket).replace(microsecond=0)
            self._until = now + timedelta(seconds=lock_seconds)
            locked = self._locked("first")
            if locked is None:
                self._without_lock("a lock was not taken, or is not shown")
            else:
                self._attempts()
                if self._admin.server_time(self._bucket) >= self._until:
                    raise StoreUnavailable("the attempts took longer than the locks: make them longer")
                self._wait_for_expiry(wait)
                self._expired("first", locked)
        finally:
            left = self._remove()
        return tuple(self._results), left

    def _attempts(self) -> None:
        plain: dict[WormCase, Callable[[str, str], object]] = {
            WormCase.DELETE_VERSION: lambda n, v: self._admin.remove_version(self._bucket, n, v),
            WormCase.DELETE_BYPASS: lambda n, v: self._admin.remove_version(self._bucket, n, v, bypass=True),
            WormCase.SHORTEN: lambda n, v: self._retain(n, v, COMPLIANCE, self._until - timedelta(seconds=1)),
            WormCase.MULTI_DELETE: self._multi_delete,
        }
        for case, attempt in plain.items():
            self._attempt(case, attempt)
        self._downgrade()
        self._bucket_wide(
            WormCase.SUSPEND_VERSIONING,
            lambda: self._admin.set_bucket_versioning(self._bucket, VersioningConfig(SUSPENDED)),
            lambda: self._admin.versioning(self._bucket) == ENABLED,
        )
        self._bucket_wide(
            WormCase.DISABLE_LOCK,
            self._disable_lock,
            lambda: self._admin.locks_objects(self._bucket),
        )
        self._overwrite()
        self._hold()
        self._lifecycle()
        self._conditional()

    def _attempt(self, case: WormCase, attempt: Callable[[str, str], object]) -> None:
        version = self._locked(case)
        if version is None:
            self._result(case, passed=False, seen="a lock was not taken")
            return
        refused, seen = self._refused(lambda: attempt(case, version))
        kept = self._kept(case, version)
        self._result(case, passed=kept, seen=_seen(seen, refused=refused, kept=kept))

    def _downgrade(self) -> None:
        case = WormCase.DOWNGRADE
        version = self._locked(case)
        if version is None:
            self._result(case, passed=False, seen="a lock was not taken")
            return
        refused, seen = self._refused(lambda: self._retain(case, version, GOVERNANCE, self._until))
        self._refused(lambda: self._admin.remove_version(self._bucket, case, version, bypass=True))
        kept = self._kept(case, version)
        self._result(case, passed=kept, seen=_seen(seen, refused=refused, kept=kept))

    def _bucket_wide(self, case: WormCase, attempt: Callable[[], object], still: Callable[[], bool]) -> None:
        """The setting must stand, and locked versions must be as safe as before."""
        version = self._locked(case)
        refused, seen = self._refused(attempt)
        stands = still()
        if version is not None:
            self._refused(lambda: self._admin.remove_version(self._bucket, case, version))
        kept = stands and version is not None and self._kept(case, version)
        self._result(case, passed=kept, seen=_seen(seen, refused=refused, kept=kept))
        if not stands:
            with suppress(S3Error):  # the other cases are to be judged by themselves
                self._admin.set_bucket_versioning(self._bucket, VersioningConfig(ENABLED))

    def _disable_lock(self) -> None:
        """In every way that a server has been known to take."""
        answers = [
            self._refused(lambda: self._admin.configure_lock(self._bucket, body))  # noqa: B023 - called here
            for body in _LOCK_OFF
        ]
        if all(refused for refused, _ in answers):
            raise _Refused(", ".join(dict.fromkeys(code for _, code in answers)))

    def _overwrite(self) -> None:
        case = WormCase.OVERWRITE
        version = self._locked(case)
        written: list[str] = []
        refused, seen = self._refused(lambda: written.append(self._put(case, b"something else")))
        kept = version is not None and self._kept(case, version)
        passed = kept and bool(written) and written[0] not in {"", version}
        self._result(
            case, passed=passed, seen=seen if refused else "a new version" if passed else "overwritten"
        )

    def _hold(self) -> None:
        case = WormCase.LEGAL_HOLD
        version = self._put(case)
        refused, seen = self._refused(
            lambda: self._admin.enable_object_legal_hold(self._bucket, case, version)
        )
        if refused:
            self._result(case, passed=False, seen=f"a hold was not taken: {seen}")
            return
        answers = [
            self._refused(attempt)[1]
            for attempt in (
                lambda: self._admin.remove_version(self._bucket, case, version),
                lambda: self._admin.remove_version(self._bucket, case, version, bypass=True),
                lambda: self._multi_delete(case, version),
            )
        ]
        kept = self._there(case, version) and self._held(case, version)
        self._result(case, passed=kept, seen=", ".join(dict.fromkeys(answers)) if kept else "it is gone")

    def _lifecycle(self) -> None:
        case = WormCase.LIFECYCLE
        version = self._locked(case)
        self._put(_CONTROL)
        rule = Rule(
            ENABLED,
            rule_filter=Filter(prefix=case),
            rule_id="expire",
            expiration=Expiration(days=1),
            noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=1),
        )
        _, seen = self._refused(
            lambda: self._admin.set_bucket_lifecycle(self._bucket, LifecycleConfig([rule]))
        )
        self._rule = (version, f"rule {seen}")

    def _lifecycle_seen(self) -> None:
        """Judged as late as can be: rules are applied at the server's leisure, mostly once a day. An object
        without a lock beside the locked one tells whether this one was.
        """
        version, seen = self._rule
        kept = version is not None and self._kept(WormCase.LIFECYCLE, version)
        applied = any(each.marker for each in self._admin.versions_of(self._bucket, _CONTROL))
        when = "applied" if applied else "not applied while the probe ran"
        self._result(
            WormCase.LIFECYCLE,
            passed=kept,
            seen=f"{seen}, {when}; the locked version is {'still there' if kept else 'gone'}",
        )

    def _conditional(self) -> None:
        case = WormCase.CONDITIONAL_PUT
        self._put(case)
        refused, seen = self._refused(lambda: self._admin.put_if_absent(self._bucket, case, b"second"))
        self._result(
            case, passed=refused, seen=seen if refused else "ignored: the store decides by the oldest version"
        )

    def _wait_for_expiry(self, wait: Callable[[float], None]) -> None:
        almost = (self._until - self._admin.server_time(self._bucket)).total_seconds() - 2
        if almost > 0:
            wait(almost)
        self._lifecycle_seen()
        while (now := self._admin.server_time(self._bucket)) < self._until + timedelta(
            seconds=_SLACK_SECONDS
        ):
            wait((self._until - now).total_seconds() + _SLACK_SECONDS)

    def _expired(self, name: str, version: str) -> None:
        refused, seen = self._refused(lambda: self._admin.remove_version(self._bucket, name, version))
        gone = not self._there(name, version)
        self._result(
            WormCase.EXPIRED, passed=gone, seen="deleted" if gone else seen if refused else "still there"
        )

    def _put(self, name: str, data: bytes = _CONTENT) -> str:
        return self._admin.put_object(self._bucket, name, io.BytesIO(data), len(data)).version_id or ""

    def _locked(self, name: str) -> str | None:
        """A new locked version; None if the server did not take the lock or does not show it."""
        version = self._put(name)
        self._refused(lambda: self._retain(name, version, COMPLIANCE, self._until))
        return version if version and self._kept(name, version) else None

    def _retain(self, name: str, version: str, mode: str, until: datetime) -> None:
        self._admin.set_object_retention(self._bucket, name, Retention(mode, until), version)

    def _multi_delete(self, name: str, version: str) -> None:
        for error in self._admin.remove_objects(self._bucket, [DeleteObject(name, version)]):
            raise _Refused(f"refused ({error.code})")

    def _kept(self, name: str, version: str) -> bool:
        """There, unchanged, and locked as it was."""
        if not self._there(name, version):
            return False
        headers = self._admin.lock_headers(self._bucket, name, version)
        until = headers.get(UNTIL)
        return (
            headers.get(MODE, "").upper() == COMPLIANCE
            and until is not None
            and lock_time(until) >= self._until
        )

    def _held(self, name: str, version: str) -> bool:
        return self._admin.lock_headers(self._bucket, name, version).get(HOLD, "").upper() == "ON"

    def _there(self, name: str, version: str) -> bool:
        try:
            answer = self._admin.get_object(self._bucket, name, version_id=version)
        except (S3Error, InvalidResponseError) as error:
            if status_and_code(error)[0] in {404, 405}:
                return False
            raise
        try:
            return answer.read() == _CONTENT
        finally:
            answer.close()
            answer.release_conn()

    def _refused(self, attempt: Callable[[], object]) -> tuple[bool, str]:
        """Whether the server said no, and with which code. A server error is neither yes nor no: raised."""
        try:
            attempt()
        except _Refused as refusal:
            return True, str(refusal)
        except (S3Error, InvalidResponseError) as error:
            status, code = status_and_code(error)
            if status is None or (status >= 500 and status != 501):
                raise
            return True, f"refused ({code or status})"
        return False, "accepted"

    def _result(self, case: WormCase, *, passed: bool, seen: str) -> None:
        result = CaseResult(case, passed, seen)
        self._results.append(result)
        self._tell(result)

    def _without_lock(self, seen: str) -> None:
        for case in WormCase:
            self._result(case, passed=False, seen=seen)

    def _remove(self) -> str:
        """What locks still hold stays, and with it the bucket."""
        try:
            for page in self._admin.walk(self._bucket, "", versions=True):
                for each in page:
                    with suppress(S3Error):
                        self._admin.disable_object_legal_hold(self._bucket, each.name, each.id)
                    with suppress(S3Error):
                        self._admin.remove_version(self._bucket, each.name, each.id)
            self._admin.remove_bucket(self._bucket)
        except CLIENT_ERRORS:
            return self._bucket
        return ""


class _Refused(Exception):
    """All parts of an attempt were refused; its text says how."""


def _seen(seen: str, *, refused: bool, kept: bool) -> str:
    if kept:
        return seen if refused else "accepted, without effect"
    return "accepted, and the lock no longer holds" if not refused else f"{seen}, and done all the same"
