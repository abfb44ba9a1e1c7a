"""What ingest decides, without I/O: what was offered, what became of it, and how each protocol says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import InvalidInstance, RejectReason, Transient
from isocenter.common.events.models import StoredInstance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isocenter.common.objects.ports import ObjectInfo
    from isocenter.common.objects.sealing import Sealing

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110

# PS3.4 table B.2-1 (C-STORE) and PS3.18 table I.2-2 (Store Instances Response) share these codes.
STATUS_OF: Final[Mapping[RejectReason, int]] = MappingProxyType(
    {
        RejectReason.NOT_DICOM: 0xC000,
        RejectReason.MISSING_UID: 0xC000,
        RejectReason.INVALID_UID: 0xC000,
        RejectReason.MALFORMED: 0xC000,
        RejectReason.TOO_LARGE: 0xC000,
        RejectReason.UNSAFE_PREAMBLE: 0xC010,
        RejectReason.TOO_DEEP: 0xC011,
        RejectReason.PIXEL_MISMATCH: 0xC012,
        RejectReason.SOP_MISMATCH: 0xA900,
        RejectReason.STUDY_MISMATCH: 0xA901,
        RejectReason.TRANSFER_SYNTAX_UNSUPPORTED: 0xC122,
        RejectReason.SOP_CLASS_UNSUPPORTED: 0x0122,
        RejectReason.OUT_OF_RESOURCES: 0xA700,
        RejectReason.UNKNOWN: PROCESSING_FAILURE,
    }
)


@dataclass(frozen=True, slots=True)
class Announced:
    """What a C-STORE-RQ and its presentation context say of the data set that follows."""

    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one instance. Success only if `reason` is None.

    The UIDs are what could be read before the decision, empty where nothing could; they answer the
    sender and go nowhere else.
    """

    reason: RejectReason | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = field(default="", repr=False)
    study_instance_uid: str = field(default="", repr=False)
    series_instance_uid: str = field(default="", repr=False)

    @property
    def stored(self) -> bool:
        return self.reason is None

    @property
    def status(self) -> int:
        """DIMSE status, and FailureReason (0008,1197) of STOW-RS."""
        return SUCCESS if self.reason is None else STATUS_OF[self.reason]


def reason_of(error: BaseException) -> RejectReason:
    """The reason a sender hears for an error: its own fault, ours for now, or a defect of ours."""
    if isinstance(error, InvalidInstance):
        return error.reason
    if isinstance(error, (Transient, OSError)):
        return RejectReason.OUT_OF_RESOURCES
    return RejectReason.UNKNOWN


def stored_instance(info: ObjectInfo, sealing: Sealing) -> StoredInstance:
    """The fact to announce, from the object alone: told again, it is the same fact."""
    facts = info.metadata
    return StoredInstance(
        instance_key=facts["instance_key"],
        series_key=facts["series_key"],
        object_key=info.key,
        content_digest=facts["content_digest"],
        size_bytes=sealing.plain_size(info),
        sop_class_uid=facts["sop_class_uid"],
        transfer_syntax_uid=facts["transfer_syntax_uid"],
        received_at=datetime.fromisoformat(facts["received_at"]),
    )


def sender_name(ae_title: bytes | str) -> str:
    """An AE title as it may enter events and logs: at most 16 printable ASCII characters."""
    text = ae_title.decode("latin-1") if isinstance(ae_title, bytes) else ae_title
    return "".join(c if " " <= c <= "~" else "?" for c in text.strip(" \0"))[:16].strip()
