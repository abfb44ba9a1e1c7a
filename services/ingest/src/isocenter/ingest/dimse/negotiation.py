"""Association negotiation (PS3.8 section 9.3, PS3.7 annex D) with pynetdicom's PDU and presentation code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.service_class import ServiceClass, StorageServiceClass, VerificationServiceClass
from pynetdicom.sop_class import uid_to_service_class

from isocenter.common.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    is_valid_uid,
)
from isocenter.common.peers import Act
from isocenter.ingest.commitment.domain import PUSH_MODEL
from isocenter.ingest.dimse import user_information
from isocenter.ingest.dimse.admission import Admission, Refusal
from isocenter.ingest.dimse.pdu import PDU_HEADER, AbortReason, PduType, ProtocolViolation, reject
from isocenter.ingest.dimse.user_information import UserInformation
from isocenter.ingest.domain import sender_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
STANDARD_ROOT: Final = "1.2.840.10008."

_ACCEPTANCE: Final = 0
_USER_REJECTION: Final = 1
_ABSTRACT_SYNTAX_NOT_SUPPORTED: Final = 3
_TRANSFER_SYNTAXES_NOT_SUPPORTED: Final = 4
# Verification carries no data set: only what every peer has is worth agreeing on.
_UNCOMPRESSED: Final = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
_CALLED, _CALLING = slice(4, 20), slice(20, 36)
_OPEN: Final = Admission()

_Answer = tuple[PresentationContext, "list[SCP_SCU_RoleSelectionNegotiation]"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the acceptor agrees to.

    Attributes:
        ae_title: our name; compared with the called AE title only if `require_called_ae_title`.
        max_pdu: longest P-DATA-TF we ask for, in bytes.
        accept_unknown_sop_classes: take private abstract syntaxes, and standard ones newer than this release,
            as storage.
        operations: a requestor may have outstanding, if it asks for more than one at a time.
        commitment: storage commitment is served.
    """

    ae_title: str
    max_pdu: int
    require_called_ae_title: bool = False
    accept_unknown_sop_classes: bool = True
    operations: int = 8
    commitment: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """`reply` is the A-ASSOCIATE-AC; `peer_max_pdu` 0 means without limit; `acts`: what may be asked."""

    reply: bytes
    contexts: Mapping[int, Context]
    peer_max_pdu: int
    calling_ae_title: str
    called_ae_title: str
    acts: frozenset[Act] = frozenset(Act)


@dataclass(frozen=True, slots=True)
class Rejected:
    """`reply` is the A-ASSOCIATE-RJ."""

    reply: bytes
    reason: str
    calling_ae_title: str
    called_ae_title: str


def negotiate(
    body: bytes,
    policy: Policy,
    *,
    full: bool,
    admission: Admission = _OPEN,
    certificate: str | None = None,
) -> Accepted | Rejected:
    """Answers an A-ASSOCIATE-RQ.

    Args:
        body: the PDU without its six byte header.
        policy: what we agree to.
        full: no further association is taken now.
        admission: who may associate.
        certificate: fingerprint of the requestor's; None: the connection is not TLS.

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
    acts = admission.judge(calling, certificate)
    if isinstance(acts, Refusal):
        return rejected(acts.value, transient=False, source=1, diagnostic=3)
    if full:
        return rejected("local-limit-exceeded", transient=True, source=3, diagnostic=2)
    request = _decode(body)
    if str(request.application_context_name) != APPLICATION_CONTEXT:
        return rejected("application-context", transient=False, source=1, diagnostic=2)
    if policy.require_called_ae_title and called != policy.ae_title:
        return rejected("called-ae-title", transient=False, source=1, diagnostic=7)
    try:
        proposed = [item.to_primitive() for item in request.presentation_context]
        wishes = user_information.proposed(request.user_information)
        answers = [_negotiate_context(context, policy, acts, wishes) for context in proposed]
        reply = _encode(answers, policy, wishes, aes=body[4:36])
    except Exception as error:
        # pynetdicom raises whatever its fields raise; all of it means that the request is malformed.
        raise ProtocolViolation(AbortReason.INVALID_PARAMETER) from error
    accepted = {
        cast("int", context.context_id): Context(
            str(context.abstract_syntax), str(context.transfer_syntax[0])
        )
        for context, _ in answers
        if context.result == _ACCEPTANCE
    }
    return Accepted(reply, accepted, wishes.max_pdu, calling, called, acts)


def _decode(body: bytes) -> A_ASSOCIATE_RQ:
    # AE titles are taken from the bytes themselves: pynetdicom refuses some that real devices send.
    neutral = body[:4] + b"A".ljust(16) * 2 + body[36:]
    request = A_ASSOCIATE_RQ()
    try:
        neutral = user_information.known_items(neutral)
        request.decode(PDU_HEADER.pack(PduType.ASSOCIATE_RQ, len(neutral)) + neutral)
    except Exception as error:
        raise ProtocolViolation(AbortReason.INVALID_PARAMETER) from error
    return request


def _negotiate_context(
    proposed: PresentationContext, policy: Policy, acts: frozenset[Act], wishes: UserInformation
) -> _Answer:
    """The answer to one proposed context: of its transfer syntaxes the first, since nothing is transcoded."""
    transfer_syntaxes = [str(uid) for uid in proposed.transfer_syntax if is_valid_uid(str(uid))]
    if not transfer_syntaxes:
        return _refused(proposed, _TRANSFER_SYNTAXES_NOT_SUPPORTED), []
    abstract_syntax = str(proposed.abstract_syntax)
    act = _act_of(abstract_syntax, policy, wishes)
    if act is None:
        return _refused(proposed, _ABSTRACT_SYNTAX_NOT_SUPPORTED), []
    if act not in acts:
        return _refused(proposed, _USER_REJECTION), []
    if act in {Act.ECHO, Act.COMMIT}:
        transfer_syntaxes = [uid for uid in transfer_syntaxes if uid in _UNCOMPRESSED]
    offered = _context(abstract_syntax, transfer_syntaxes)
    # All services are asked of us and never by us: the requestor is the SCU.
    offered.scu_role, offered.scp_role = True, False
    asked = wishes.roles.get(abstract_syntax)
    roles = None if asked is None else {UID(abstract_syntax): cast("tuple[bool | None, bool | None]", asked)}
    [context], agreed = negotiate_as_acceptor([proposed], [offered], roles)
    return context, agreed


def _act_of(abstract_syntax: str, policy: Policy, wishes: UserInformation) -> Act | None:
    """What an abstract syntax is for; None: it is not served."""
    service = uid_to_service_class(abstract_syntax)
    if service is VerificationServiceClass:
        return Act.ECHO
    if service is StorageServiceClass:
        return Act.STORE
    if abstract_syntax == PUSH_MODEL:
        return Act.COMMIT if policy.commitment else None
    if service is not ServiceClass:
        return None
    kinship = wishes.kinship.get(abstract_syntax)
    if kinship is not None and not kinship.is_storage:
        return None
    if policy.accept_unknown_sop_classes:
        return Act.STORE if _may_be_storage(abstract_syntax) else None
    return Act.STORE if kinship is not None and kinship.specialises_storage else None


def _refused(proposed: PresentationContext, result: int) -> PresentationContext:
    answer = PresentationContext()
    answer.context_id = proposed.context_id
    answer.abstract_syntax = proposed.abstract_syntax
    # Not significant, but there must be one (PS3.8 table 9-18).
    answer.transfer_syntax = [IMPLICIT_VR_LITTLE_ENDIAN]
    answer.result = result
    return answer


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


def _encode(answers: list[_Answer], policy: Policy, wishes: UserInformation, *, aes: bytes) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title = primitive.called_ae_title = "A"
    primitive.result = 0
    primitive.result_source = 1
    primitive.presentation_context_definition_results_list = [context for context, _ in answers]
    accepted = {str(context.abstract_syntax) for context, _ in answers if context.result == _ACCEPTANCE}
    roles = {str(role.sop_class_uid): role for _, agreed in answers for role in agreed}
    primitive.user_information = user_information.answer(
        max_pdu=policy.max_pdu,
        roles=list(roles.values()),
        window=user_information.agreed_window(wishes.window, policy.operations),
        storage_classes=[
            uid
            for uid in dict.fromkeys(wishes.extended)
            if uid in accepted and uid_to_service_class(uid) is not VerificationServiceClass
        ],
    )
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(primitive)
    encoded: bytes = pdu.encode()
    # Both titles go back byte for byte (PS3.8 table 9-17).
    return encoded[:10] + aes + encoded[42:]
