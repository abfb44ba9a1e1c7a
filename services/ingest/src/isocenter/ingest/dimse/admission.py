"""Who may associate, and for what: an AE title together with how its connection came (PS3.15 annex B)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from isocenter.common.peers import Act

if TYPE_CHECKING:
    from isocenter.common.peers import Peers

ANYTHING: Final = frozenset(Act)
STRANGER: Final = frozenset({Act.ECHO, Act.STORE})
"""What a title that is not listed may ask for, where such titles are let in."""


class Refusal(StrEnum):
    """Why a requestor is turned away, for the log; it hears only that its title is not known."""

    UNKNOWN_PEER = "unknown-peer"
    """The calling AE title is not listed."""
    CERTIFICATE_NOT_LISTED = "certificate-not-listed"
    """The title is listed, but not with the certificate of this connection."""
    TLS_REQUIRED = "tls-required"
    """The title is listed with certificates and came without one: in clear, anyone can call itself that."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Judges a requestor before anything else of its request is answered.

    Attributes:
        peers: None: the site lists nobody, and whoever reaches a port without TLS may ask for anything.
        strangers: without TLS, titles that are not listed may verify and store.
    """

    peers: Peers | None = None
    strangers: bool = False

    def judge(self, calling: str, certificate: str | None) -> frozenset[Act] | Refusal:
        """What the requestor may ask for.

        Args:
            calling: AE title.
            certificate: fingerprint (see `common.peers`) of the client certificate; None: no TLS.
        """
        peer = self.peers.get(calling) if self.peers is not None else None
        if certificate is not None:
            if peer is None:
                return Refusal.UNKNOWN_PEER
            return peer.allow if certificate in peer.certificates else Refusal.CERTIFICATE_NOT_LISTED
        if self.peers is None:
            return ANYTHING
        if peer is None:
            return STRANGER if self.strangers else Refusal.UNKNOWN_PEER
        return Refusal.TLS_REQUIRED if peer.certificates else peer.allow
