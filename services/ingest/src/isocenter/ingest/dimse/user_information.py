"""The user information of an association (PS3.7 annex D): what the requestor proposes beside its contexts."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SOPClassExtendedNegotiation,
)
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from isocenter.common.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pynetdicom.pdu_items import UserInformationItem
    from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

STORAGE_SERVICE_CLASS: Final = "1.2.840.10008.4.2"
STORAGE_SUPPORT: Final = bytes((2, 0, 3, 0, 0, 0))
"""Service-class-application-information of storage (PS3.4 table B.3-1) as acceptor: level 2 (full: every
attribute is kept), digital signatures level 3 (kept as they came), elements are never coerced.
"""

_ITEM: Final = struct.Struct(">BxH")
_FIXED: Final = 68
_USER_INFORMATION: Final = 0x50
_VARIABLE_ITEMS: Final = frozenset({0x10, 0x20, _USER_INFORMATION})
_SUB_ITEMS: Final = frozenset(range(0x51, 0x58))
"""Those that are looked at. User identity (0x58) is not among them: it is no authentication here, and what is
not read cannot be leaked. Others are ignored, as PS3.8 section 9.3.1 demands.
"""


class Roles(NamedTuple):
    """Those that the requestor offers to take for an abstract syntax (PS3.7 section D.3.3.4)."""

    scu: bool
    scp: bool


class Window(NamedTuple):
    """Asynchronous operations window (PS3.7 section D.3.3.3): operations outstanding, 0 for any number.

    Attributes:
        invoked: by the requestor.
        performed: by the requestor for the acceptor.
    """

    invoked: int
    performed: int


class Kinship(NamedTuple):
    """What a requestor says an abstract syntax is (common extended negotiation, PS3.7 section D.3.3.6)."""

    service_class: str
    general_classes: tuple[str, ...]

    @property
    def is_storage(self) -> bool:
        return self.service_class == STORAGE_SERVICE_CLASS

    @property
    def specialises_storage(self) -> bool:
        """One of the general classes is a storage class that this release knows."""
        return any(uid_to_service_class(uid) is StorageServiceClass for uid in self.general_classes)


@dataclass(frozen=True, slots=True)
class UserInformation:
    """What was proposed. `max_pdu` 0 means without limit."""

    max_pdu: int = 0
    roles: Mapping[str, Roles] = field(default_factory=dict)
    window: Window | None = None
    extended: tuple[str, ...] = ()
    """Abstract syntaxes with a SOP class extended negotiation item."""
    kinship: Mapping[str, Kinship] = field(default_factory=dict)


def known_items(body: bytes) -> bytes:
    """The A-ASSOCIATE-RQ, without its header, with the items that are looked at. Raises ValueError."""
    kept = bytearray(body[:_FIXED])
    for kind, value in _items(body[_FIXED:]):
        if kind == _USER_INFORMATION:
            user = b"".join(_item(sub, data) for sub, data in _items(value) if sub in _SUB_ITEMS)
            kept += _item(kind, user)
        elif kind in _VARIABLE_ITEMS:
            kept += _item(kind, value)
    return bytes(kept)


def proposed(item: UserInformationItem | None) -> UserInformation:
    """Reads pynetdicom's item; raises whatever its fields raise."""
    if item is None:
        return UserInformation()
    window = item.async_ops_window
    return UserInformation(
        max_pdu=item.maximum_length or 0,
        roles={
            str(uid): Roles(bool(each.scu_role), bool(each.scp_role))
            for uid, each in item.role_selection.items()
        },
        window=None
        if window is None
        else Window(
            window.maximum_number_operations_invoked or 0, window.maximum_number_operations_performed or 0
        ),
        extended=tuple(str(each.uid) for each in item.ext_neg),
        kinship={
            str(each.sop_class_uid): Kinship(
                str(each.service_class_uid),
                tuple(str(uid) for uid in each.related_general_sop_class_identification or ()),
            )
            for each in item.common_ext_neg
        },
    )


def agreed_window(window: Window | None, most: int) -> Window | None:
    """The answer to a proposed window. Without one, a requestor keeps to one operation at a time.

    Operations are performed in the order of their coming; what the window saves is the wait for responses.
    """
    if window is None:
        return None
    return Window(min(window.invoked, most) if window.invoked else most, 1)


def answer(
    *,
    max_pdu: int,
    roles: list[SCP_SCU_RoleSelectionNegotiation],
    window: Window | None,
    storage_classes: list[str],
) -> list[Any]:
    """Our user information, for pynetdicom's primitive.

    Args:
        max_pdu: longest P-DATA-TF we ask for.
        roles: of the contexts that were negotiated.
        window: as agreed.
        storage_classes: accepted as storage, with extended negotiation proposed.
    """
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    items: list[Any] = [length, implementation, version, *roles]
    if window is not None:
        operations = AsynchronousOperationsWindowNegotiation()
        operations.maximum_number_operations_invoked = window.invoked
        operations.maximum_number_operations_performed = window.performed
        items.append(operations)
    for uid in storage_classes:
        support = SOPClassExtendedNegotiation()
        support.sop_class_uid = uid
        support.service_class_application_information = STORAGE_SUPPORT
        items.append(support)
    return items


def _items(data: bytes) -> list[tuple[int, bytes]]:
    """Raises ValueError: a length passes the end."""
    found, position = [], 0
    while position < len(data):
        if len(data) - position < _ITEM.size:
            raise ValueError
        kind, length = _ITEM.unpack_from(data, position)
        position += _ITEM.size
        if length > len(data) - position:
            raise ValueError
        found.append((kind, data[position : position + length]))
        position += length
    return found


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value
