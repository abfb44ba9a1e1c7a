"""What is said: one frozen model per event type.

Rules (docs/event-contract.md): only additive changes inside a major version; no PHI, which also
means no DICOM UID of a patient's study: studies, series and instances appear as keyed hashes
(`isocenter.common.keys`). Producers validate strictly, consumers ignore what they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from isocenter.common.errors import RejectReason

TYPE_PREFIX = "org.isocenter.imaging."

OpaqueKey = Annotated[str, StringConstraints(pattern=r"^[a-z2-7]{26}$")]
"""128 bits of a keyed hash, base32, lower case, no padding."""
ObjectKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9/._-]{0,254}$")]
Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
StandardUid = Annotated[str, StringConstraints(pattern=r"^[0-9.]{1,64}$")]
"""A UID that names a class or an encoding (SOP Class, Transfer Syntax), never a patient's object."""
SenderName = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,64}$")]
"""The sending system: its AE title, or `stow` for an HTTP client that is not signed in."""
TransferId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
UtcTime = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
MAX_MANIFESTS = 1000
"""Keeps `study.settled` far below the size of a record, however many series a study has."""
Version = Annotated[int, Field(ge=1, le=2**53 - 1)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


READER: Mapping[str, Any] = MappingProxyType({"reader": True})
"""Validation context of a reader. Producers validate without it: they cannot write a value not listed."""


def _unknown_to_readers(value: Any, known: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """A reader maps a code that a newer producer added to `unknown` (every enumeration has it)."""
    if info.context is not READER or not isinstance(value, str):
        return known(value)
    try:
        return known(value)
    except ValueError:
        return known("unknown")


OpenEnum = WrapValidator(_unknown_to_readers)


class Protocol(StrEnum):
    """How an instance arrived."""

    DIMSE = "dimse"
    STOW = "stow"
    UNKNOWN = "unknown"


class SettleReason(StrEnum):
    """Why a study was judged to have settled."""

    QUIET = "quiet"
    TRANSFER_CLOSED = "transfer-closed"
    MAX_WAIT = "max-wait"
    MANUAL = "manual"
    UNKNOWN = "unknown"


class Event(BaseModel):
    """Base of all event data. Subclasses are facts in the past tense."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    event_type: ClassVar[str]
    """CloudEvents `type`, major version last."""
    topic: ClassVar[str]
    schema_minor: ClassVar[int] = 0
    """Raised with every additive change; each minor has its own example."""

    study_key: OpaqueKey


class StoredInstance(BaseModel):
    """One instance that is durable in the object store."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    instance_key: OpaqueKey
    series_key: OpaqueKey
    object_key: ObjectKey
    content_digest: Sha256Hex
    """SHA-256 of the data set as it came (without preamble and file meta information)."""
    size_bytes: Count
    """Length of the Part 10 stream in the object."""
    sop_class_uid: StandardUid
    transfer_syntax_uid: StandardUid
    received_at: UtcTime


class InstancesStored(Event):
    """1 to 200 instances of one study are durable. Published before the sender hears Success."""

    event_type = TYPE_PREFIX + "instances.stored.v1"
    topic = "imaging.instance.v1"

    transfer_id: TransferId
    """One association or one STOW-RS request."""
    protocol: Annotated[Protocol, OpenEnum]
    sender: SenderName
    instances: Annotated[list[StoredInstance], Field(min_length=1, max_length=200)]


class InstanceRejected(Event):
    """An instance was refused; nothing of it is kept.

    `study_key` is the real one where the Study Instance UID could be read, else a key made from
    the transfer, so that the record still has a partition.
    """

    event_type = TYPE_PREFIX + "instance.rejected.v1"
    topic = "imaging.instance.v1"

    transfer_id: TransferId
    protocol: Annotated[Protocol, OpenEnum]
    sender: SenderName
    reason: Annotated[RejectReason, OpenEnum]
    status: Annotated[int, Field(ge=0, le=0xFFFF)]
    """DIMSE status, or the FailureReason (0008,1197) of the STOW-RS response."""
    rejected_at: UtcTime


class TransferClosed(Event):
    """An association or request that brought instances of this study has ended.

    Evidence for settling, not proof of completeness: DICOM has none.
    """

    event_type = TYPE_PREFIX + "transfer.closed.v1"
    topic = "imaging.instance.v1"

    transfer_id: TransferId
    protocol: Annotated[Protocol, OpenEnum]
    sender: SenderName
    instances: Count
    """Instances of this study that this transfer stored (re-sent ones included)."""
    aborted: bool
    closed_at: UtcTime


class InstanceConflicted(Event):
    """The same SOP Instance UID came with other content. Both objects are kept; the first stays current."""

    event_type = TYPE_PREFIX + "instance.conflicted.v1"
    topic = "imaging.study.v1"

    series_key: OpaqueKey
    instance_key: OpaqueKey
    current_object_key: ObjectKey
    conflicting_object_key: ObjectKey
    detected_at: UtcTime


class StudySettled(Event):
    """A judgement with evidence: this study is worth acting on. Versioned, repeatable, never 'complete'."""

    event_type = TYPE_PREFIX + "study.settled.v1"
    topic = "imaging.study.v1"

    version: Version
    reason: Annotated[SettleReason, OpenEnum]
    series: Count
    instances: Count
    size_bytes: Count
    modalities: list[Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_ ]{1,16}$")]]
    revision: ObjectKey
    """The object that records this version: reason, counts, and the series manifest of each series."""
    manifests: Annotated[list[ObjectKey], Field(max_length=MAX_MANIFESTS)]
    """One series manifest per series, in the order of `series_key`. Empty for a study with more series than
    fit: the revision names them all.
    """
    settled_at: UtcTime


class StudyUpdated(Event):
    """Instances arrived after the study had settled: a `study.settled` with the next version will follow."""

    event_type = TYPE_PREFIX + "study.updated.v1"
    topic = "imaging.study.v1"

    version: Version
    """The version that is out of date now."""
    updated_at: UtcTime


EVENT_MODELS: dict[str, type[Event]] = {
    model.event_type: model
    for model in (
        InstancesStored,
        InstanceRejected,
        TransferClosed,
        InstanceConflicted,
        StudySettled,
        StudyUpdated,
    )
}


class CloudEvent(BaseModel):
    """One event with its CloudEvents 1.0 context attributes. `id` is stable over re-sends."""

    model_config = ConfigDict(frozen=True)

    id: str
    source: str
    """`/isocenter/<service>`: a URI reference without host names."""
    time: datetime
    data: Event
    sequence: int | None = None
    """Study version where the event has one (CloudEvents `sequence` extension, zero-padded on the wire)."""
    correlation_id: str | None = None
    causation_id: str | None = None

    @property
    def type(self) -> str:
        return self.data.event_type

    @property
    def subject(self) -> str:
        return self.data.study_key
