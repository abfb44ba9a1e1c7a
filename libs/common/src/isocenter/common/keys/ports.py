"""Where wrapped study keys are kept and what wraps them: the contracts, each with a conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A study key as it is kept.

    Attributes:
        study_key: keyed hash of the Study Instance UID: the table holds no identifier.
        key_id: of this key, random; what sealed objects are bound to.
        tenant: bound, too: see `PlatformSettings.tenant`.
        wrapped: the key, encrypted by the wrapper.
        wrapper: which wrapping key that was; never secret. A rotation goes by it.
        created_at: when the study got its key.
    """

    study_key: str
    key_id: str
    tenant: str
    wrapped: bytes = field(repr=False)
    wrapper: str
    created_at: datetime

    @property
    def binding(self) -> bytes:
        """What the wrapper authenticates beside the key: a row changed or moved does not unwrap."""
        parts = ("isocenter/study-key/1", self.tenant, self.study_key, self.key_id)
        return b"\0".join(part.encode() for part in parts)


class KeyTable(Protocol):
    """One row per study. Never in storage that cannot delete: destroying a key is destroying its objects.

    Raises (every method): KeysUnavailable.
    """

    async def get(self, study_key: str) -> WrappedKey | None: ...

    async def create(self, row: WrappedKey) -> WrappedKey:
        """Adds the row, durably, if its study has none. Returns the one that is kept: of several who create
        at once the first wins, and all of them get its row.
        """
        ...

    async def replace(self, old: WrappedKey, new: WrappedKey) -> bool:
        """Puts `new` in place of `old`, durably; False if the row is not `old` any more."""
        ...

    async def delete(self, study_key: str, key_id: str) -> bool:
        """Durable on return. False if there was no such row."""
        ...

    def list(self) -> AsyncIterator[WrappedKey]:
        """All rows in the order of their study keys. Rows made meanwhile may be missing."""
        ...

    async def count(self) -> int: ...

    async def check(self) -> None:
        """Whether it answers."""
        ...

    async def close(self) -> None: ...


class KeyWrapper(Protocol):
    """Encrypts study keys under a key of the site."""

    async def current(self) -> str:
        """Name of the wrapping key that `wrap` would use now, as it enters `WrappedKey.wrapper`.

        Raises:
            KeysUnavailable
            Misconfigured: it refuses us.
        """
        ...

    async def wrap(self, secret: bytes, binding: bytes) -> tuple[bytes, str]:
        """The wrapped key, and the name of the wrapping key. Raises as `current` does."""
        ...

    async def unwrap(self, row: WrappedKey) -> bytes:
        """The 32 bytes of the study key.

        Raises:
            KeyUnusable: not wrapped by this site's key, or the row was changed.
            KeysUnavailable
            Misconfigured: it refuses us.
        """
        ...

    async def close(self) -> None: ...
