"""Where studies may be pulled from: a list that the site keeps, never something an event says.

One TOML file (`ISOCENTER_INGEST_SOURCES_FILE`), read at start:

    [[source]]
    name = "east-archive"
    kind = "dicomweb"
    ref = "https://pacs.east.example/dicom-web"   # announcements of this place, or of a path inside it
    endpoint = "https://10.1.2.3/dicom-web"       # where it really is; default: `ref`
    username = "isocenter"
    password = { file = "/run/secrets/east" }     # or { env = "EAST_PASSWORD" }; or `token` for a bearer

    [[source]]
    name = "outbox"
    kind = "s3"
    ref = "s3://east-outbox/studies"
    endpoint = "https://s3.example.org"
    access_key = { env = "OUTBOX_ACCESS_KEY" }
    secret_key = { env = "OUTBOX_SECRET_KEY" }

    [[source]]
    name = "pacs"
    kind = "dimse"
    ref = "dimse://PACS"
    host = "pacs.example.org"
    port = 104
    retrieve = "move"                             # to our own AE title, which the peer must know; or "get"

An event's `location.ref` picks a source by kind and by longest `ref` that contains it, and a path inside it.
Host, credentials and TLS come from here alone, so an announcement cannot make this process call anybody else.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from isocenter.common.errors import Misconfigured
from isocenter.common.events.models import LocationKind, LocationRef, StudyLocation, SystemName
from isocenter.common.peers import AeTitle
from isocenter.ingest.pull.domain import PullReason, PullRefused

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~:=+-]+")
Endpoint = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?$")]


class Secret(BaseModel):
    """Where a secret is, never the secret itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError
        return self

    def read(self) -> str:
        """Raises Misconfigured."""
        if self.env is not None:
            value = os.environ.get(self.env, "")
        else:
            try:
                value = Path(str(self.file)).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Misconfigured(
                    f"a secret of a source cannot be read: {self.file}: {type(error).__name__}"
                ) from None
        if not value:
            raise Misconfigured(f"a secret of a source is empty: {self.file or self.env}")
        return value


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: SystemName
    """The `sender` of what comes from here."""
    ref: LocationRef
    max_instances: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    """Of one study."""
    max_bytes: Annotated[int, Field(ge=1)] = 256 << 30
    """Of one pull."""
    idle_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """A source that sends nothing for so long is given up for now."""
    connections: Annotated[int, Field(ge=1, le=32)] = 4
    """Requests at the same time."""
    ca_file: Path | None = None
    """PEM of the authority that signed the source's certificate; None: the system's."""

    @property
    def root(self) -> str:
        return self.ref.rstrip("/")


class DicomwebSource(_Source):
    """WADO-RS (PS3.18 section 10.4); QIDO-RS, where it has it, to find what is missing."""

    kind: Literal["dicomweb"]
    endpoint: Endpoint | None = None
    username: str | None = None
    password: Secret | None = None
    token: Secret | None = None
    """Bearer token (RFC 6750)."""
    certificate_file: Path | None = None
    """Client certificate, PEM."""
    key_file: Path | None = None

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> Self:
        if (self.username is None) != (self.password is None) or (self.token and self.username):
            raise ValueError
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError
        return self


class S3Source(_Source):
    """Part 10 objects below a prefix, one prefix per study."""

    kind: Literal["s3"]
    endpoint: Endpoint
    region: str = "us-east-1"
    access_key: Secret | None = None
    secret_key: Secret | None = None
    """Without both: anonymous."""
    path_style: bool = True

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError
        return self


class DimseSource(_Source):
    """A peer that answers C-FIND, and C-MOVE or C-GET (PS3.4 annex C), study root."""

    kind: Literal["dimse"]
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    retrieve: Literal["move", "get"] = "move"
    """`move`: instances come as C-STORE to our DICOM port, of any size. `get`: over the association that we
    open, each whole in memory, up to `max_instance_bytes`.
    """
    calling_ae_title: AeTitle | None = None
    """None: that of our DICOM port."""
    max_instance_bytes: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    tls: bool = False
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def ae_title(self) -> str:
        return self.ref.removeprefix("dimse://")


AnySource = DicomwebSource | S3Source | DimseSource
_SOURCE: Final[TypeAdapter[AnySource]] = TypeAdapter(Annotated[AnySource, Field(discriminator="kind")])


class Sources:
    """The sources of a site."""

    def __init__(self, sources: tuple[AnySource, ...] = ()) -> None:
        self._sources = sources
        for attribute in ("name", "root"):
            if len({getattr(source, attribute) for source in sources}) != len(sources):
                raise Misconfigured(f"sources: a {attribute} is listed twice")
        for source in sources:
            try:
                StudyLocation(kind=LocationKind(source.kind), ref=source.ref)
            except ValidationError:
                raise Misconfigured(f"source {source.name}: `ref` is of another kind") from None

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Without a file nothing may be pulled.

        Raises:
            Misconfigured: the file cannot be read, or names the entry and field that is wrong.
        """
        if path is None:
            return cls()
        try:
            document = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Misconfigured(f"sources file {path} cannot be read: {type(error).__name__}") from None
        entries = document.pop("source", [])
        if document or not isinstance(entries, list):
            raise Misconfigured(f"sources file {path}: only [[source]] tables belong there")
        sources = []
        for number, entry in enumerate(entries, 1):
            try:
                sources.append(_SOURCE.validate_python(entry))
            except ValidationError as error:
                faults = "; ".join(
                    f"{'.'.join(map(str, fault['loc'])) or 'entry'}: {fault['type']}"
                    for fault in error.errors(include_url=False, include_context=False, include_input=False)
                )
                raise Misconfigured(f"sources file {path}, source {number}: {faults}") from None
        return cls(tuple(sources))

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[AnySource]:
        return iter(self._sources)

    def find(self, location: StudyLocation) -> tuple[AnySource, str]:
        """The source of a location, and the path inside it: "" or segments joined by "/".

        Raises:
            PullRefused: no source contains it, or the path is none.
        """
        ref = location.ref.rstrip("/")
        fitting = [
            source
            for source in self._sources
            if source.kind == location.kind.value and f"{ref}/".startswith(f"{source.root}/")
        ]
        if not fitting:
            raise PullRefused(PullReason.UNKNOWN_SOURCE)
        source = max(fitting, key=lambda each: len(each.root))
        path = ref.removeprefix(source.root).removeprefix("/")
        if path and not all(
            _SEGMENT.fullmatch(segment) and segment.strip(".") for segment in path.split("/")
        ):
            raise PullRefused(PullReason.LOCATION_REFUSED)
        if path and isinstance(source, DimseSource):
            raise PullRefused(PullReason.LOCATION_REFUSED)
        return source, path
