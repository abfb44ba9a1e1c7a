"""Association negotiation (PS3.8 section 9.3, PS3.7 annex D) with pynetdicom's PDU and presentation code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.service_class import ServiceClass, StorageServiceClass, VerificationServiceClass
from pynetdicom.sop_class import uid_to_service_class

from isocenter.common.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from isocenter.common.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    is_valid_uid,
)
from isocenter.ingest.dimse.pdu import PDU_HEADER, AbortReason, PduType, ProtocolViolation, reject
from isocenter.ingest.domain import sender_name

if TYPE_CHECKING:
    from collections.abc import Mapping

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
STANDARD_ROOT: Final = "1.2.840.10008."

_ACCEPTANCE: Final = 0
_ABSTRACT_SYNTAX_NOT_SUPPORTED: Final = 3
_TRANSFER_SYNTAXES_NOT_SUPPORTED: Final = 4
# Verification carries no data set: only what every peer has is worth agreeing on.
_UNCOMPRESSED: Final = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
_CALLED, _CALLING = slice(4, 20), slice(20, 36)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the acceptor agrees to.

    Attributes:
        ae_title: our name; compared with the called AE title only if `require_called_ae_title`.
        max_pdu: longest P-DATA-TF we ask for, in bytes.
        accept_unknown_sop_classes: take private abstract syntaxes, and standard ones newer than this release,
            as storage.
    """

    ae_title: str
    max_pdu: int
    require_called_ae_title: bool = False
    accept_unknown_sop_classes: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """`reply` is the A-ASSOCIATE-AC; `peer_max_pdu` 0 means without limit."""

    reply: bytes
    contexts: Mapping[int, Context]
    peer_max_pdu: int
    calling_ae_title: str
    called_ae_title: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """`reply` is the A-ASSOCIATE-RJ."""

    reply: bytes
    reason: str
    calling_ae_title: str
    called_ae_title: str


def negotiate(body: bytes, policy: Policy, *, full: bool) -> Accepted | Rejected:
    """Answers an A-ASSOCIATE-RQ.

    Args:
        body: the PDU without its six byte header.
        policy: what we agree to.
        full: no further association is taken now.

    Raises:
        ProtocolViolation: the PDU cannot be read.
    """
    if len(body) < 68:
        raise ProtocolViolation(AbortReason.INVALID_PARAMETER)
    called, calling = sender_name(body[_CALLED]), sender_name(body[_CALLING])

    def rejected(reason: str, *, transient: bool, source: int, diagnostic: int) -> Rejected:
        reply = reject(transient=transient, source=source, diagnostic=diagnostic)
        return Rejected(reply, reason, calling, called)

    if not body[1] & 1:
        return rejected("protocol-version", transient=False, source=2, diagnostic=2)
    if full:
        return rejected("local-limit-exceeded", transient=True, source=3, diagnostic=2)
    request = _decode(body)
    if str(request.application_context_name) != APPLICATION_CONTEXT:
        return rejected("application-context", transient=False, source=1, diagnostic=2)
    if policy.require_called_ae_title and called != policy.ae_title:
        return rejected("called-ae-title", transient=False, source=1, diagnostic=7)
    try:
        proposed = [item.to_primitive() for item in request.presentation_context]
        contexts = [_negotiate_context(context, policy) for context in proposed]
        user_information = request.user_information
        peer_max_pdu = (user_information.maximum_length or 0) if user_information is not None else 0
        reply = _encode(contexts, policy, aes=body[4:36])
    except Exception as error:
        # pynetdicom raises whatever its fields raise; all of it means that the request is malformed.
        raise ProtocolViolation(AbortReason.INVALID_PARAMETER) from error
    accepted = {
        cast("int", context.context_id): Context(
            str(context.abstract_syntax), str(context.transfer_syntax[0])
        )
        for context in contexts
        if context.result == _ACCEPTANCE
    }
    return Accepted(reply, accepted, peer_max_pdu, calling, called)


def _decode(body: bytes) -> A_ASSOCIATE_RQ:
    # AE titles are taken from the bytes themselves: pynetdicom refuses some that real devices send.
    neutral = body[:4] + b"A".ljust(16) * 2 + body[36:]
    request = A_ASSOCIATE_RQ()
    try:
        request.decode(PDU_HEADER.pack(PduType.ASSOCIATE_RQ, len(neutral)) + neutral)
    except Exception as error:
        raise ProtocolViolation(AbortReason.INVALID_PARAMETER) from error
    return request


def _negotiate_context(proposed: PresentationContext, policy: Policy) -> PresentationContext:
    """The answer to one proposed context: of its transfer syntaxes the first, since nothing is transcoded."""
    transfer_syntaxes = [str(uid) for uid in proposed.transfer_syntax if is_valid_uid(str(uid))]
    if not transfer_syntaxes:
        answer = PresentationContext()
        answer.context_id = proposed.context_id
        answer.abstract_syntax = proposed.abstract_syntax
        answer.transfer_syntax = [IMPLICIT_VR_LITTLE_ENDIAN]
        answer.result = _TRANSFER_SYNTAXES_NOT_SUPPORTED
        return answer
    offered: list[PresentationContext] = []
    abstract_syntax = str(proposed.abstract_syntax)
    service = uid_to_service_class(abstract_syntax)
    if service is VerificationServiceClass:
        offered = [_context(abstract_syntax, [uid for uid in transfer_syntaxes if uid in _UNCOMPRESSED])]
    elif service is StorageServiceClass or (
        service is ServiceClass and policy.accept_unknown_sop_classes and _may_be_storage(abstract_syntax)
    ):
        offered = [_context(abstract_syntax, transfer_syntaxes)]
    answers, _ = negotiate_as_acceptor([proposed], offered)
    return answers[0]


def _may_be_storage(abstract_syntax: str) -> bool:
    """Private, or under a branch where the standard puts storage (PS3.6 table A-1; .34 is radiotherapy's)."""
    if not abstract_syntax.startswith(STANDARD_ROOT):
        return is_valid_uid(abstract_syntax)
    return abstract_syntax.startswith(("1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.5.1.4.34."))


def _context(abstract_syntax: str, transfer_syntaxes: list[str]) -> PresentationContext:
    context = PresentationContext()
    context.abstract_syntax = abstract_syntax
    context.transfer_syntax = list(transfer_syntaxes)
    return context


def _encode(contexts: list[PresentationContext], policy: Policy, *, aes: bytes) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title = primitive.called_ae_title = "A"
    primitive.result = 0
    primitive.result_source = 1
    primitive.presentation_context_definition_results_list = contexts
    length = MaximumLengthNotification()
    length.maximum_length_received = policy.max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    primitive.user_information = [length, implementation, version]
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(primitive)
    encoded: bytes = pdu.encode()
    # Both titles go back byte for byte (PS3.8 table 9-17).
    return encoded[:10] + aes + encoded[42:]
