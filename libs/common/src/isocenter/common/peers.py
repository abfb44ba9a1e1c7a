"""Remote application entities: who they are, where they listen, what they may ask.

One TOML file per site (`ISOCENTER_PEERS_FILE`), read at start:

    [[peer]]
    ae_title = "PACS"
    host = "pacs.example.org"          # where we call it; not needed for one that only sends
    port = 11112
    tls = true
    certificates = ["sha256:0f3c..."]  # of the peer's client certificate; with TLS one of these is required
    allow = ["store", "commit"]

A title alone is no identity (PS3.15 annex B): over TLS a title counts only together with a certificate that
is listed with it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from isocenter.common.errors import Misconfigured

AeTitle = Annotated[
    str, StringConstraints(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")
]
"""PS3.5 table 6.2-1: 1 to 16 characters, no backslash, no space at either end."""
Fingerprint = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""SHA-256 of the certificate in DER, lower-case hex."""


class Act(StrEnum):
    """What a peer may ask of us."""

    ECHO = "echo"
    STORE = "store"
    COMMIT = "commit"
    """Storage commitment (PS3.4 annex J)."""
    QUERY = "query"
    RETRIEVE = "retrieve"


class Peer(BaseModel):
    """One remote application entity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ae_title: AeTitle
    host: str | None = None
    """Where it listens, for associations that we open (N-EVENT-REPORT, C-MOVE); None: we never call it."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    tls: bool = False
    """Whether associations that we open to it use TLS."""
    certificates: tuple[Fingerprint, ...] = ()
    allow: frozenset[Act] = frozenset({Act.ECHO, Act.STORE, Act.COMMIT})

    @model_validator(mode="after")
    def _address_is_whole(self) -> Self:
        if (self.host is None) != (self.port is None):
            raise ValueError
        return self


class Peers:
    """The peers of a site, by AE title."""

    def __init__(self, peers: tuple[Peer, ...] = ()) -> None:
        self._by_title = {peer.ae_title: peer for peer in peers}
        if len(self._by_title) != len(peers):
            raise Misconfigured("peers: an AE title is listed twice")

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Without a file nobody is known.

        Raises:
            Misconfigured: the file cannot be read, or names the entry and field that is wrong.
        """
        if path is None:
            return cls()
        try:
            document = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Misconfigured(f"peers file {path} cannot be read: {type(error).__name__}") from None
        entries = document.pop("peer", [])
        if document or not isinstance(entries, list):
            raise Misconfigured(f"peers file {path}: only [[peer]] tables belong there")
        peers = []
        for number, entry in enumerate(entries, 1):
            try:
                peers.append(Peer.model_validate(entry))
            except ValidationError as error:
                faults = "; ".join(
                    f"{'.'.join(map(str, fault['loc'])) or 'host and port'}: {fault['type']}"
                    for fault in error.errors(include_url=False, include_context=False, include_input=False)
                )
                raise Misconfigured(f"peers file {path}, peer {number}: {faults}") from None
        return cls(tuple(peers))

    def get(self, ae_title: str) -> Peer | None:
        return self._by_title.get(ae_title)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_title.values())

    def __len__(self) -> int:
        return len(self._by_title)
