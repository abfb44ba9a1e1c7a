"""Settings of ingest: `ISOCENTER_INGEST_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    """Address of the DICOM port without TLS."""
    dicom_port: Port = 11112
    """IANA's port for DICOM."""
    dicom_plain: Literal["loopback", "anywhere", "off"] = "loopback"
    """Where DICOM is taken without TLS: from this machine, from wherever `dicom_host` is reached, nowhere."""
    dicom_tls_host: str = "127.0.0.1"
    dicom_tls_port: Port = 2762
    """IANA's port for DICOM over TLS. Open if the three files are named."""
    tls_certificate_file: Path | None = None
    """PEM, with the chain up to the authority. All these files are read again when they change."""
    tls_key_file: Path | None = None
    """PEM, without a password."""
    tls_client_ca_file: Path | None = None
    """PEM of the authorities that sign client certificates. Each must be listed with its AE title as well."""
    accept_unknown_peers: bool = False
    """With a peers file: let titles that are not listed verify and store without TLS."""
    ae_title: AeTitle = "ISOCENTER"
    require_called_ae_title: bool = False
    """Reject associations that call another AE title."""
    accept_unknown_sop_classes: bool = True
    """Take private SOP classes, and standard ones newer than this release, as storage."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """That take connections from the same ports, one for each core that ingest may use. More than one needs
    Kafka and S3. Limits such as `max_associations` are those of each.
    """
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
    acknowledge: Literal["stored", "published"] | None = None
    """When a sender hears Success: `stored`, the object is durable, and so is the store's record that its
    event is yet to be published; `published`, the event is durable as well. By default `stored` with the
    embedded bus and `published` with Kafka.
    """
    max_unannounced: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """With `stored`: while so many instances wait for their event, further senders wait for theirs."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """With less free space on a disk that takes objects or events, instances are refused before they are
    read. 0: only when a disk is full.
    """
    resume_free_bytes: Annotated[int, Field(ge=0)] = 3 << 29
    """With so much they are taken again; not less than `min_free_bytes` counts."""
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0
    """An event not known to be durable after this is a failure to the sender."""
    stow_max_parts: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    sources_file: Path | None = None
    """Where announced studies may be pulled from, see `isocenter.ingest.pull.sources`; None: nowhere, and
    every announcement is a dead letter, to be replayed once a source is listed.
    """
    pull_limit_seconds: Annotated[float, Field(gt=0, le=43_200)] = 900.0
    """For one attempt to fetch a study; what came until then is kept, and the next attempt goes on."""
    commitment_unknown_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """An instance that the index does not know fails storage commitment only so long after the request, and
    after a start: it may be stored and not indexed yet.
    """
    commitment_give_up_hours: Annotated[float, Field(gt=0, le=24 * 90)] = 72.0
    """A requester of storage commitment that cannot be told the result is called for so long."""
    commitment_keep_days: Annotated[float, Field(gt=0, le=3650)] = 30.0
    """Requests for storage commitment and their results are forgotten after so long."""
    public_url: str | None = None
    """DICOMweb service root as clients reach it; by default taken from each request."""
