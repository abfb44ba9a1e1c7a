"""Settings of ingest: `ISOCENTER_INGEST_*`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints
from pydantic_settings import SettingsConfigDict

from isocenter.common.settings import Port, ServiceSettings

AeTitle = Annotated[
    str, StringConstraints(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")
]
"""PS3.5 table 6.2-1: 1 to 16 characters, no backslash, no space at either end."""


class IngestSettings(ServiceSettings):
    """What an operator can set; `host` and `http_port` are STOW-RS's."""

    model_config = SettingsConfigDict(env_prefix="ISOCENTER_INGEST_")

    dicom_host: str = "127.0.0.1"
    """Address of the DICOM port. Loopback by default: there is no TLS and no access control yet."""
    dicom_port: Port = 11112
    """IANA's port for DICOM."""
    ae_title: AeTitle = "ISOCENTER"
    require_called_ae_title: bool = False
    """Reject associations that call another AE title."""
    accept_unknown_sop_classes: bool = True
    """Take private SOP classes, and standard ones newer than this release, as storage."""
    max_associations: Annotated[int, Field(ge=1, le=10_000)] = 64
    """More are rejected as transient. Each takes up to about 4 MiB."""
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 20)] = 128 << 10
    """Longest P-DATA-TF asked of senders: longer ones mean fewer headers and fewer system calls."""
    associate_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    idle_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """An association without a byte for so long, while it is the sender's turn, is aborted."""
    association_drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 15.0
    """At a stop, associations that run may finish for so long; must fit into `drain_seconds`."""
    max_header_bytes: Annotated[int, Field(ge=64 << 10, le=64 << 20)] = 4 << 20
    """Bytes of a data set (inflated) in which the four UIDs must come."""
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0
    """An event not known to be durable after this is a failure to the sender."""
    stow_max_parts: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    public_url: str | None = None
    """DICOMweb service root as clients reach it; by default taken from each request."""
