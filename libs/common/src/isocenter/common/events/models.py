"""What is said: one frozen model per event type. Facts, and the commands of `imaging.command.v1`.

Rules (docs/event-contract.md): only additive changes inside a major version; no PHI, which also
means no DICOM UID of a patient's study: studies, series and instances appear as keyed hashes
(`isocenter.common.keys`). The one exception is what other systems announce: they have no key of ours.
Producers validate strictly, consumers ignore what they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

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
    model_validator,
)
from pydantic_core import PydanticCustomError

from isocenter.common.errors import RejectReason

ROOT_PREFIX = "org.isocenter."
TYPE_PREFIX = ROOT_PREFIX + "imaging."
INBOUND_PREFIX = ROOT_PREFIX + "inbound."

OpaqueKey = Annotated[str, StringConstraints(pattern=r"^[a-z2-7]{26}$")]
"""128 bits of a keyed hash, base32, lower case, no padding."""
ObjectKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9/._-]{0,254}$")]
Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
StandardUid = Annotated[str, StringConstraints(pattern=r"^[0-9.]{1,64}$")]
"""A UID that names a class or an encoding (SOP Class, Transfer Syntax), never a patient's object."""
SenderName = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,64}$")]
"""The sending system: its AE title, or `stow` for an HTTP client that is not signed in."""
TransferId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
StudyUid = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*$", max_length=64)]
"""Study Instance UID (0020,000D), PS3.5 section 9.1. An identifier: on the inbound topic only."""
SystemName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
"""A system as its site calls it; never a person."""
ModalityCode = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_ ]{1,16}$")]
"""Modality (0008,0060)."""
EntryName = Annotated[str, StringConstraints(pattern=r"^[a-z2-7]{26}-[0-9a-f]{16}$")]
"""A staged series: its series key, and the first 64 bits of a digest of what it was made from."""
LocationRef = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9]{0,15}://[A-Za-z0-9_][A-Za-z0-9._~:/%=+-]{0,1022}$")
]
"""A URL without user, query or fragment: there is no place for a password, a token or a signature."""
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
    """C-STORE to us, a C-MOVE that we asked for included."""
    STOW = "stow"
    PULL = "pull"
    """Fetched by us after an announcement."""
    ADOPT = "adopt"
    """Registered where it lies, in an archive that was there before."""
    UNKNOWN = "unknown"


class SettleReason(StrEnum):
    """Why a study was judged to have settled."""

    QUIET = "quiet"
    TRANSFER_CLOSED = "transfer-closed"
    MAX_WAIT = "max-wait"
    MANUAL = "manual"
    UNKNOWN = "unknown"


class LocationKind(StrEnum):
    """How an announced study can be fetched."""

    S3 = "s3"
    DICOMWEB = "dicomweb"
    DIMSE = "dimse"
    UNKNOWN = "unknown"


class StagingMode(StrEnum):
    """How a load on a node carries bytes from its disk to its GPU."""

    GDS_NVFS = "gds-nvfs"
    """GPUDirect Storage through the nvidia-fs driver."""
    GDS_P2PDMA = "gds-p2pdma"
    """GPUDirect Storage through the kernel's peer-to-peer DMA."""
    KVIKIO_COMPAT = "kvikio-compat"
    """kvikio, by way of memory of the host."""
    POSIX_PINNED = "posix-pinned"
    """Ordinary reads into page-locked memory, then a copy."""
    NUMPY = "numpy"
    """Into memory of the host: no GPU that can be used."""
    UNKNOWN = "unknown"


class EvictionReason(StrEnum):
    """Why a staged series is gone from a node."""

    SPACE = "space"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    """The series has changed since: another entry takes its place."""
    DROPPED = "dropped"
    """`command.unstage` asked for it."""
    DAMAGED = "damaged"
    """A checksum of it did not hold."""
    DESTROYED = "destroyed"
    """The study itself is no more."""
    MANUAL = "manual"
    """Somebody asked the node itself."""
    UNKNOWN = "unknown"


class StagePriority(StrEnum):
    """What is staged first, most urgent first."""

    STAT = "stat"
    INFERENCE = "inference"
    PRIOR = "prior"
    """Earlier studies, for comparison."""
    BULK = "bulk"
    """Training sets, warming up: when nothing else waits."""
    UNKNOWN = "unknown"


class PinKind(StrEnum):
    """Whether a staged series may be evicted for space."""

    NONE = "none"
    SOFT = "soft"
    """Only when nothing else can go."""
    HARD = "hard"
    """Not until it is unstaged."""
    UNKNOWN = "unknown"


SCHEMES: Mapping[LocationKind, frozenset[str]] = MappingProxyType(
    {
        LocationKind.S3: frozenset({"s3"}),
        LocationKind.DICOMWEB: frozenset({"http", "https"}),
        LocationKind.DIMSE: frozenset({"dimse"}),
    }
)
"""The URL schemes that a reference of this kind may have."""

MAX_ANNOUNCEMENT_BYTES = 65_536
"""What every CloudEvents intermediary forwards (CloudEvents 1.0.2, Size Limits)."""


class Event(BaseModel):
    """Base of all event data. Subclasses are facts in the past tense, or commands in the imperative."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    event_type: ClassVar[str]
    """CloudEvents `type`, major version last."""
    topic: ClassVar[str]
    schema_minor: ClassVar[int] = 0
    """Raised with every additive change; each minor has its own example."""
    max_bytes: ClassVar[int | None] = None
    """Readers refuse a record whose value is longer; None: the topic's limit is the only one."""

    @property
    def subject(self) -> str:
        """What the event is about, in a form that may go anywhere; empty where there is no such name."""
        return ""


class StudyEvent(Event):
    """About a study that this platform holds."""

    study_key: OpaqueKey

    @property
    def subject(self) -> str:
        return self.study_key


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


class InstancesStored(StudyEvent):
    """1 to 200 instances of one study are durable. Published before the sender hears Success."""

    event_type = TYPE_PREFIX + "instances.stored.v1"
    topic = "imaging.instance.v1"
    schema_minor = 1

    transfer_id: TransferId
    """One association or one STOW-RS request."""
    protocol: Annotated[Protocol, OpenEnum]
    sender: SenderName
    instances: Annotated[list[StoredInstance], Field(min_length=1, max_length=200)]


class InstanceRejected(StudyEvent):
    """An instance was refused; nothing of it is kept.

    `study_key` is the real one where the Study Instance UID could be read, else a key made from
    the transfer, so that the record still has a partition.
    """

    event_type = TYPE_PREFIX + "instance.rejected.v1"
    topic = "imaging.instance.v1"
    schema_minor = 2

    transfer_id: TransferId
    protocol: Annotated[Protocol, OpenEnum]
    sender: SenderName
    reason: Annotated[RejectReason, OpenEnum]
    status: Annotated[int, Field(ge=0, le=0xFFFF)]
    """DIMSE status, or the FailureReason (0008,1197) of the STOW-RS response."""
    rejected_at: UtcTime


class TransferClosed(StudyEvent):
    """An association or request that brought instances of this study has ended.

    Evidence for settling, not proof of completeness: DICOM has none.
    """

    event_type = TYPE_PREFIX + "transfer.closed.v1"
    topic = "imaging.instance.v1"
    schema_minor = 1

    transfer_id: TransferId
    protocol: Annotated[Protocol, OpenEnum]
    sender: SenderName
    instances: Count
    """Instances of this study that this transfer stored (re-sent ones included)."""
    aborted: bool
    closed_at: UtcTime


class InstanceConflicted(StudyEvent):
    """The same SOP Instance UID came with other content. Both objects are kept; the first stays current."""

    event_type = TYPE_PREFIX + "instance.conflicted.v1"
    topic = "imaging.study.v1"

    series_key: OpaqueKey
    instance_key: OpaqueKey
    current_object_key: ObjectKey
    conflicting_object_key: ObjectKey
    detected_at: UtcTime


class StudySettled(StudyEvent):
    """A judgement with evidence: this study is worth acting on. Versioned, repeatable, never 'complete'."""

    event_type = TYPE_PREFIX + "study.settled.v1"
    topic = "imaging.study.v1"

    version: Version
    reason: Annotated[SettleReason, OpenEnum]
    series: Count
    instances: Count
    size_bytes: Count
    modalities: list[ModalityCode]
    revision: ObjectKey
    """The object that records this version: reason, counts, and the series manifest of each series."""
    manifests: Annotated[list[ObjectKey], Field(max_length=MAX_MANIFESTS)]
    """One series manifest per series, in the order of `series_key`. Empty for a study with more series than
    fit: the revision names them all.
    """
    settled_at: UtcTime


class StudyUpdated(StudyEvent):
    """Instances arrived after the study had settled: a `study.settled` with the next version will follow."""

    event_type = TYPE_PREFIX + "study.updated.v1"
    topic = "imaging.study.v1"

    version: Version
    """The version that is out of date now."""
    updated_at: UtcTime


class StudyStaged(StudyEvent):
    """A series is ready on a node: a load there needs neither the archive nor a decoder."""

    event_type = TYPE_PREFIX + "study.staged.v1"
    topic = "imaging.study.v1"

    version: Version | None = None
    """The settled version that it was staged from; absent where it was asked for without one."""
    series_key: OpaqueKey
    entry: EntryName
    """What to ask the node for. A series that changes becomes another entry."""
    node: SystemName
    """Where it is, so that work can be placed by the data."""
    mode: Annotated[StagingMode, OpenEnum]
    """How a load on this node carries bytes, as found by trying."""
    size_bytes: Count
    """On the node's disk."""
    stacks: Count
    """Volumes in the series: frames of one shape and meaning make one."""
    modality: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_ ]{0,16}$")]
    """Modality (0008,0060); empty where the series has none."""
    pinned: bool
    staged_at: UtcTime
    received_at: UtcTime | None = None
    """When the last of its instances was acknowledged to its sender, where that is known."""


class StudyEvicted(StudyEvent):
    """A staged series is gone from a node. The study itself is as safe as before."""

    event_type = TYPE_PREFIX + "study.evicted.v1"
    topic = "imaging.study.v1"

    series_key: OpaqueKey
    entry: EntryName
    node: SystemName
    reason: Annotated[EvictionReason, OpenEnum]
    evicted_at: UtcTime


class StageStudy(StudyEvent):
    """Bring a study, or one series of it, to a GPU node: to whichever one reads this."""

    event_type = TYPE_PREFIX + "command.stage.v1"
    topic = "imaging.command.v1"

    series_key: OpaqueKey | None = None
    """Absent: every series of the study, as the index has it when the command is read."""
    priority: Annotated[StagePriority, OpenEnum]
    pin: Annotated[PinKind, OpenEnum]
    requested_by: SystemName
    """The system that asks; never a person."""
    requested_at: UtcTime


class UnstageStudy(StudyEvent):
    """What was staged of a study before `requested_at` is needed no longer, on any node; pins on it end."""

    event_type = TYPE_PREFIX + "command.unstage.v1"
    topic = "imaging.command.v1"

    series_key: OpaqueKey | None = None
    """Absent: every series of the study."""
    requested_by: SystemName
    requested_at: UtcTime


class StudyLocation(BaseModel):
    """Where an announced study is. Access is agreed between the sites beforehand, never sent along."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    kind: Annotated[LocationKind, OpenEnum]
    """`unknown` is what a reader makes of a kind that it does not know; do not write it."""
    ref: LocationRef
    """`s3`: `s3://bucket/prefix`. `dicomweb`: the base URL of the service, `https://host/path`. `dimse`: the
    AE title of a peer that the receiving site has configured, `dimse://AE_TITLE`. No user, query or fragment.
    """

    @model_validator(mode="after")
    def _scheme_of_its_kind(self) -> Self:
        if self.kind in SCHEMES and self.ref.partition("://")[0] not in SCHEMES[self.kind]:
            raise PydanticCustomError("location_kind_mismatch", "the reference is of another kind")
        return self


class StudyAnnounced(Event):
    """Another system says that a study can be fetched from it. The platform reads this and never writes it.

    The only event with a DICOM UID: its publisher has no key of ours.
    """

    event_type = INBOUND_PREFIX + "study.announced.v1"
    topic = "inbound.study.v1"
    max_bytes = MAX_ANNOUNCEMENT_BYTES

    study_instance_uid: StudyUid
    location: StudyLocation
    instances: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = None
    """How many instances the sender holds of the study, where it knows."""
    sender: SystemName


EVENT_MODELS: dict[str, type[Event]] = {
    model.event_type: model
    for model in (
        InstancesStored,
        InstanceRejected,
        TransferClosed,
        InstanceConflicted,
        StudySettled,
        StudyUpdated,
        StudyStaged,
        StudyEvicted,
        StageStudy,
        UnstageStudy,
        StudyAnnounced,
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
        """The study's key; empty for an announcement, which has none."""
        return self.data.subject
