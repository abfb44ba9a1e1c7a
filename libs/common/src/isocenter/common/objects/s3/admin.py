"""The calls that are no data path: versions, locks, buckets, unfinished uploads. Blocking; run in threads."""

from __future__ import annotations

import hashlib
import ssl
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import CopySource
from minio.credentials.credentials import Credentials
from minio.credentials.providers import ChainedProvider, EnvAWSProvider, IamAwsProvider
from minio.datatypes import parse_list_objects
from minio.error import S3Error

from isocenter.common.errors import Misconfigured, StoreUnavailable
from isocenter.common.settings import S3Settings

PAGE: Final = 1000
UNTIL: Final = "x-amz-object-lock-retain-until-date"
MODE: Final = "x-amz-object-lock-mode"
HOLD: Final = "x-amz-object-lock-legal-hold"
BYPASS: Final = {"x-amz-bypass-governance-retention": "true"}

_NO_LOCK: Final = {"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "NotImplemented"}


@dataclass(frozen=True, slots=True)
class Version:
    """One line of a listing. `id` is "" in a bucket without versions."""

    name: str
    id: str
    marker: bool
    modified: datetime


class Surroundings(ChainedProvider):
    """Keys from the variables `AWS_*`, or the role of the pod or machine."""

    def __init__(self) -> None:
        super().__init__([EnvAWSProvider(), IamAwsProvider()])

    def retrieve(self) -> Credentials:
        """Raises StoreUnavailable: there are none, or the service that gives a role its keys is away."""
        try:
            return super().retrieve()
        except (ValueError, urllib3.exceptions.HTTPError):
            names = " and ".join(S3Settings.variable(name) for name in ("access_key", "secret_key"))
            raise StoreUnavailable(f"no keys for the object store: {names}, AWS_*, or a role") from None


class Admin(Minio):
    """The `minio` client, bounded in time, and what it has no public call for."""

    @classmethod
    def of(cls, settings: S3Settings, *, timeout: float = 20.0, retries: int = 2) -> Admin:
        """Raises Misconfigured: endpoint or credentials are missing, or the CA file cannot be used."""
        endpoint, access, secret = required(settings)
        authorities(settings)
        parts = urlsplit(endpoint)
        if parts.path.strip("/") or parts.query:
            raise Misconfigured(f"{S3Settings.variable('endpoint')}: no path behind host and port")
        admin = cls(
            parts.netloc,
            access,
            secret,
            secure=parts.scheme == "https",
            region=settings.region,
            credentials=None if access else Surroundings(),
            http_client=urllib3.PoolManager(
                maxsize=16,
                timeout=urllib3.Timeout(connect=min(5.0, timeout), read=timeout),
                retries=urllib3.Retry(
                    total=retries,
                    backoff_factor=0.2,
                    backoff_jitter=0.2,
                    status_forcelist=[500, 502, 503, 504],
                ),
                ca_certs=str(settings.ca_file or certifi.where()),
            ),
        )
        if not settings.path_style:
            admin.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        return admin

    def walk(
        self, bucket: str, prefix: str, *, after: str = "", versions: bool = False, page: int = PAGE
    ) -> Iterator[list[Version]]:
        """Names that begin with `prefix` and come behind `after`, ascending; of one name the newest version
        first, but for delete markers, which come at the end of their page.
        """
        query = {"prefix": prefix, "max-keys": str(page)}
        query |= {"versions": ""} if versions else {"list-type": "2"}
        if after:
            query["key-marker" if versions else "start-after"] = after
        while True:
            found, more, token, version = parse_list_objects(
                self._execute("GET", bucket, query_params={"delimiter": "", **query})
            )
            yield [
                Version(
                    str(each.object_name),
                    each.version_id or "",
                    each.is_delete_marker,
                    each.last_modified or datetime.fromtimestamp(0, UTC),
                )
                for each in found
            ]
            if not more or not token:
                return
            if versions:
                query |= {"key-marker": token, "version-id-marker": version or ""}
            else:
                query["continuation-token"] = token

    def versions_of(self, bucket: str, name: str) -> list[Version]:
        """Newest first; delete markers behind all others."""
        found: list[Version] = []
        for page in self.walk(bucket, name, versions=True, page=20):
            found += [each for each in page if each.name == name]
            if any(each.name != name for each in page):
                break  # the exact name comes before every longer one
        return sorted(found, key=lambda each: each.marker)

    def remove_version(self, bucket: str, name: str, version: str, *, bypass: bool = False) -> None:
        self._execute(
            "DELETE",
            bucket,
            name,
            query_params={"versionId": version} if version else None,
            headers=dict(BYPASS) if bypass else None,
        )

    def versioning(self, bucket: str) -> str:
        """Enabled, Suspended or Off."""
        return str(self.get_bucket_versioning(bucket).status)

    def locks_objects(self, bucket: str) -> bool:
        """Whether the bucket was made with Object Lock."""
        try:
            self._execute("GET", bucket, query_params={"object-lock": ""})
        except S3Error as error:
            if error.code in _NO_LOCK or error.response.status == 501:
                return False
            raise
        return True

    def configure_lock(self, bucket: str, body: bytes) -> None:
        self._execute("PUT", bucket, body=body, headers=_md5(body), query_params={"object-lock": ""})

    def put_if_absent(self, bucket: str, name: str, body: bytes) -> None:
        self._execute("PUT", bucket, name, body=body, headers={"If-None-Match": "*"})

    def copy_within(self, bucket: str, name: str, target: str) -> None:
        """With its metadata."""
        self.copy_object(bucket, target, CopySource(bucket, name))

    def server_time(self, bucket: str) -> datetime:
        """The server's clock, to the second."""
        return parsedate_to_datetime(self._execute("HEAD", bucket).headers["Date"])

    def lock_headers(self, bucket: str, name: str, version: str | None = None) -> Mapping[str, str]:
        """Mode, retain-until and hold as the server's headers say: Ceph's XML times have nine decimals, which
        `get_object_retention` cannot read.
        """
        headers = self.stat_object(bucket, name, version_id=version).metadata or {}
        return {
            name.lower(): value
            for name, value in headers.items()
            if name.lower().startswith("x-amz-object-lock")
        }

    def abort_uploads(self, bucket: str, before: datetime) -> int:
        """Removes the parts of uploads that began earlier and were never finished."""
        aborted = 0
        found = self._list_multipart_uploads(bucket)
        for upload in found.uploads:
            if upload.initiated_time is not None and upload.initiated_time < before and upload.upload_id:
                self._abort_multipart_upload(bucket, upload.object_name, upload.upload_id)
                aborted += 1
        return aborted


def _md5(body: bytes) -> dict[str, str | list[str] | tuple[str]]:
    """S3 asks for it with this call; it protects nothing here."""
    return {"Content-MD5": b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}


def required(settings: S3Settings) -> tuple[str, str | None, str | None]:
    """Endpoint, access key, secret key. Without both keys the surroundings say who we are: the variables
    `AWS_*`, or the role of the pod or machine.

    Raises:
        Misconfigured: no endpoint, or one key without the other.
    """
    access, secret = settings.access_key, settings.secret_key
    if settings.endpoint is None:
        raise Misconfigured(f"the object store needs {S3Settings.variable('endpoint')}")
    if access is None and secret is None:
        return settings.endpoint, None, None
    if access is None or secret is None:
        names = " and ".join(S3Settings.variable(name) for name in ("access_key", "secret_key"))
        raise Misconfigured(f"the object store needs both {names}, or neither")
    return settings.endpoint, access.get_secret_value(), secret.get_secret_value()


def authorities(settings: S3Settings) -> bytes | None:
    """What the CA file holds; None: none is named. Raises Misconfigured: it cannot be read, or is no PEM."""
    if settings.ca_file is None:
        return None
    try:
        ssl.create_default_context(cafile=settings.ca_file)
        return settings.ca_file.read_bytes()
    except OSError as error:
        name = S3Settings.variable("ca_file")
        raise Misconfigured(f"{name} cannot be used", cause=type(error).__name__) from None
