"""Every error of the platform, and what the delivery policy does with it.

* IsocenterError
  + Permanent              never worth retrying: the message goes to the dead-letter topic
    - InvalidEvent         the record is no CloudEvent of ours, or its data break the schema
    - UnknownEventType     no handler and no model for this `ce_type`
    - InvalidInstance      the DICOM bytes were refused; carries a `RejectReason`
    - NotFound             the object, study or instance is not there
    - IntegrityError       bytes do not hash to what was recorded
    - KeyMissing           a sealed object whose study has no key: destroyed, or the key table was lost
    - Misconfigured        settings, key file or directory that cannot be used as they are; ends a start. What
                           a handler meets later (keys were rotated) is retried like Transient
      * KeyUnusable        a study key that the site's wrapping key does not open
  + Transient              a dependency is down: the same message may succeed later
    - BusUnavailable
    - StoreUnavailable
      * StoreFull          no space: ingest answers A700, never Success
    - IndexUnavailable
    - KeysUnavailable      the key table, or the service that wraps keys
    - ParserUnavailable    no process that parses can be started
    - Overloaded           a bounded queue is full

Errors carry identifiers as attributes and never payload values: their text reaches logs, spans
and dead letters, where no PHI may be.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class IsocenterError(Exception):
    """Base of all errors of the platform. `ids` holds opaque identifiers, never values from a data set."""

    code: ClassVar[str] = "internal"
    reason_code: str = ""
    """One of a documented list, where a dead letter should say more than the kind of error."""

    def __init__(self, message: str = "", **ids: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.ids: dict[str, str | int] = ids

    def __str__(self) -> str:
        detail = " ".join(f"{name}={value}" for name, value in sorted(self.ids.items()))
        return " ".join(part for part in (self.message, f"[{detail}]" if detail else "") if part)


class Permanent(IsocenterError):
    """Never worth retrying."""

    code = "permanent"


class Transient(IsocenterError):
    """A dependency is down; the same message may succeed later."""

    code = "transient"


class InvalidEvent(Permanent):
    code = "invalid-event"


class UnknownEventType(Permanent):
    code = "unknown-event-type"


class NotFound(Permanent):
    code = "not-found"


class IntegrityError(Permanent):
    code = "integrity"


class Misconfigured(Permanent):
    code = "misconfigured"


class KeyMissing(Permanent):
    code = "key-missing"


class KeyUnusable(Misconfigured):
    code = "key-unusable"


class BusUnavailable(Transient):
    code = "bus-unavailable"


class StoreUnavailable(Transient):
    code = "store-unavailable"


class StoreFull(StoreUnavailable):
    code = "store-full"


class IndexUnavailable(Transient):
    code = "index-unavailable"


class KeysUnavailable(Transient):
    code = "keys-unavailable"


class ParserUnavailable(Transient):
    code = "parser-unavailable"


class Overloaded(Transient):
    code = "overloaded"


class RejectReason(StrEnum):
    """Why an instance was refused: the stable reason codes of `instance.rejected` events.

    `unknown` is what a reader maps a code to that it does not know yet.
    """

    NOT_DICOM = "not-dicom"
    """No Part 10 preamble and file meta information where they must be (PS3.10 section 7.1)."""
    MISSING_UID = "missing-uid"
    """SOP Class, SOP Instance, Study or Series Instance UID absent or empty."""
    INVALID_UID = "invalid-uid"
    """A UID that breaks PS3.5 section 9.1 (characters, length, leading zeros)."""
    SOP_MISMATCH = "sop-mismatch"
    """The command, file meta information and data set disagree on SOP Class or SOP Instance UID."""
    STUDY_MISMATCH = "study-mismatch"
    """STOW-RS to /studies/{uid} with an instance of another study."""
    TRANSFER_SYNTAX_UNSUPPORTED = "transfer-syntax-unsupported"
    SOP_CLASS_UNSUPPORTED = "sop-class-unsupported"
    MALFORMED = "malformed"
    """The data set cannot be walked: length past the end, bad VR, truncated element."""
    TOO_LARGE = "too-large"
    """The header or the inflated stream passes the configured bound."""
    TOO_DEEP = "too-deep"
    """Sequences are nested deeper than any reader should have to follow."""
    PIXEL_MISMATCH = "pixel-mismatch"
    """Rows, Columns, samples, bits and Number of Frames promise more than Pixel Data holds."""
    UNSAFE_PREAMBLE = "unsafe-preamble"
    """The 128 bytes before `DICM` begin a program, a script, an archive or a page (CVE-2019-11687)."""
    OUT_OF_RESOURCES = "out-of-resources"
    """Store or bus cannot take it now; the sender should try again."""
    UNKNOWN = "unknown"


class InvalidInstance(Permanent):
    """DICOM bytes that are refused. `reason` goes to the sender's status and into the event."""

    code = "invalid-instance"

    def __init__(self, reason: RejectReason, message: str = "", **ids: str | int) -> None:
        super().__init__(message or reason.value, **ids)
        self.reason = reason
