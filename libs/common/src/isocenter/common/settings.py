"""Settings: the environment becomes one frozen object, validated at start and printable without secrets.

Every variable begins with `ISOCENTER_`; those of a service with `ISOCENTER_<SERVICE>_`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretBytes,
    SecretStr,
    StringConstraints,
    ValidationError,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from isocenter.common.errors import Misconfigured
from isocenter.common.telemetry.log import LogFormat

PREFIX = "ISOCENTER_"
MASK = "***"
SECRETS_DIR = Path("/run/secrets")
"""Where containers find secrets as files. A file named like a variable, in lower case, is its value: it does
not show in `docker inspect` as the environment does. The environment wins.
"""

Port = Annotated[int, Field(ge=0, le=65535)]
"""0 lets the operating system choose."""


_BROKER = r"\s*(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?\s*"


def _has_host(url: str) -> str:
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:  # `port` itself raises for what is none
        raise ValueError
    return url


def _names_nobody(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError  # the clients take keys apart from addresses
    return url


Url = Annotated[str, StringConstraints(pattern=r"^https?://"), AfterValidator(_has_host)]
"""Clients find out only when they connect that an address is none, each with an error of its own."""


class Settings(BaseSettings):
    """Base of all settings. Subclasses set `env_prefix`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        populate_by_name=True,
        env_ignore_empty=True,  # `VARIABLE=` in a compose file means: not set
        secrets_dir=SECRETS_DIR if SECRETS_DIR.is_dir() else None,
    )

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Settings from the environment; `overrides` win.

        Raises:
            Misconfigured: names each variable and the kind of fault, never the value: it may be a secret.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            faults = [
                f"{cls.variable(str(fault['loc'][0])) if fault['loc'] else cls.__name__}: {fault['type']}"
                for fault in error.errors(include_url=False, include_context=False, include_input=False)
            ]
        raise Misconfigured("settings: " + "; ".join(faults))

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable of a field."""
        if field not in cls.model_fields:
            return field.upper()
        return f"{cls.model_config.get('env_prefix', '')}{field}".upper()

    def describe(self) -> dict[str, str]:
        """Variable -> value in force, secrets masked."""
        return {self.variable(name): _shown(getattr(self, name)) for name in sorted(type(self).model_fields)}


class PlatformSettings(Settings):
    """What is shared by all services of a site."""

    data_dir: Path = Path(".data/isocenter")
    """Keys, objects, index, event log and recent spans (embedded mode)."""
    default_issuer: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,64}$")] = "local"
    """Issuer of patient ids and accession numbers where a data set names none."""
    tenant: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")] = "default"
    """Whose objects these are: bound into every study key made from now on, so that sites that share engines
    cannot open each other's. Keys that exist keep the name they were made with.
    """
    read_unsealed: bool = True
    """Whether objects are read that say they are not sealed: those of releases before sealing. Who can write
    to the store can say so of anything: set False where there are none.
    """
    site_key_file: Path | None = None
    """The site secret, where several machines share it; None: `data_dir`/keys/site.key, made at first start.
    A file that is named must be there: replicas that each made their own would speak of different studies.
    """
    otlp_endpoint: Url | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "otlp_endpoint", "ISOCENTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        ),
    )
    """Base URL of an OTLP/HTTP collector, e.g. `http://127.0.0.1:4318`; None: nothing leaves the machine."""
    log_format: LogFormat = LogFormat.JSON
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    spans_kept: Annotated[int, Field(ge=0, le=10_000_000)] = 100_000
    """Recent spans kept on this machine for `isocenter trace`; 0: none, a trace store has them."""
    peers_file: Path | None = None
    """Remote application entities, see `isocenter.common.peers`; None: nobody is known by name."""
    trace_store_url: Url | None = None
    """Where `isocenter trace` asks: base URL of a Jaeger query API, e.g. `http://traces:10428/select/jaeger`."""


class KafkaSettings(Settings):
    """The cluster that carries the events. In force when `bootstrap` is set."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}KAFKA_")

    bootstrap: Annotated[str, StringConstraints(pattern=rf"^{_BROKER}(,{_BROKER})*,?\s*$")] | None = None
    """`host:port,...`; None: the embedded event log in the data directory."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    """PEM of the authority that signed the brokers' certificates; None: the system's."""
    replication_factor: Annotated[int, Field(ge=1, le=10)] = 3
    """Of the topics that `isocenter topics apply` creates."""
    min_insync_replicas: Annotated[int, Field(ge=1, le=10)] = 2
    session_timeout_ms: Annotated[int, Field(ge=3_000, le=300_000)] = 30_000
    """How long a member may be silent before its partitions go to another."""


class KeySettings(Settings):
    """What wraps study keys."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}KEYS_")

    database: str | None = None
    """Where the keys are on MongoDB; None: in the database of the index. For an index that is rebuilt beside
    the one in use.
    """
    wrapper: Literal["file", "transit", "kms"] = "file"
    file: Path | None = None
    """The wrapping key, where several machines share it: 32 random bytes; None: `data_dir`/keys/wrap.key,
    made at first start. A file that is named must be there.
    """
    transit_url: Annotated[Url, AfterValidator(_names_nobody)] | None = None
    """Of OpenBao or Vault, e.g. `https://bao.example.org:8200`."""
    transit_mount: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_/-]{1,128}$")] = "transit"
    transit_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")] = "isocenter"
    """Name of a transit key of type aes256-gcm96 or chacha20-poly1305."""
    transit_token: SecretStr | None = None
    transit_token_file: Path | None = None
    """Read again for each request: an agent renews it."""
    transit_namespace: str | None = None
    transit_ca_file: Path | None = None
    kms_key: str | None = None
    """ARN, id or alias of a symmetric key of AWS KMS. Needs the extra `isocenter-common[kms]`."""
    kms_region: str = "us-east-1"
    kms_endpoint: Annotated[Url, AfterValidator(_names_nobody)] | None = None


class MongoSettings(Settings):
    """The database of the index and of the parked studies. In force when `uri` is set."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}MONGO_")

    uri: SecretStr | None = None
    """`mongodb://user:password@host,.../?replicaSet=rs0`; None: SQLite in the data directory."""
    database: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,38}$")] = "isocenter"
    driver: Literal["pymongo", "motor"] = "pymongo"
    """`motor` needs the extra `isocenter-common[motor]`."""


class S3Settings(Settings):
    """The object store. In force when `endpoint` is set."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}S3_")

    endpoint: Annotated[Url, AfterValidator(_names_nobody)] | None = None
    """E.g. `https://s3.eu-central-1.amazonaws.com`; None: files in the data directory."""
    region: str = "us-east-1"
    bucket: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "isocenter"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    path_style: bool = True
    """Bucket in the path (Ceph, most on-premises stores) or, False, in the host name (AWS)."""
    ca_file: Path | None = None
    scratch_dir: Path | None = None
    """Where objects too large for memory wait for their upload; None: the system's temporary directory."""


class ServiceSettings(Settings):
    """What every service has when it runs in a process of its own."""

    host: str = "127.0.0.1"
    """Address of the service's HTTP routes. Loopback by default: there is no sign-in yet."""
    http_port: Port = 0
    health_host: str = "127.0.0.1"
    health_port: Port = 0
    """`/livez`, `/readyz` and `/metrics`: a port of its own, so that it need not be open to senders."""
    shared_ports: bool = False
    """Other processes of this service listen on the same ports (SO_REUSEPORT)."""
    drain_seconds: Annotated[float, Field(gt=0, le=3600)] = 25.0
    """For requests in hand, and then again for the service: a stop takes at most twice this and some seconds.
    Whoever kills after a grace period must wait longer; the chart and the compose file do.
    """


def unknown_variables(
    *known: type[Settings], environment: Mapping[str, str] | None = None, ignore: tuple[str, ...] = ()
) -> list[str]:
    """`ISOCENTER_*` variables that nothing reads: a misspelt name would be a setting silently ignored."""
    read = {cls.variable(name) for cls in known for name in cls.model_fields}
    given = os.environ if environment is None else environment
    ours = {name for name in given if name.upper().startswith(PREFIX)}
    return sorted(name for name in ours if name.upper() not in read and not name.upper().startswith(ignore))


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr | SecretBytes):
        return MASK
    if isinstance(value, str) and "://" in value and "@" in value:
        scheme, _, rest = value.partition("://")
        return f"{scheme}://{MASK}@{rest.rpartition('@')[2]}"
    return str(value)
