"""What a pull needs of a source, whatever it speaks."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from isocenter.ingest.domain import Announced, Outcome
    from isocenter.ingest.pull.domain import Place


class Sink(Protocol):
    """Takes instances into the platform. Safe for several at a time, as many as the source allows."""

    async def store(self, data: AsyncIterable[bytes], announced: Announced | None = None) -> Outcome:
        """One instance: a Part 10 file, or with `announced` a bare data set.

        Raises:
            PullRefused: more than the source may bring.
            PullError, OSError: what `data` raises; nothing of the instance is kept.
        """
        ...

    async def parts(self, boundary: str, body: AsyncIterable[bytes]) -> None:
        """The instances of a multipart body. Raises as `store`, and PullFailed for a body that is cut off."""
        ...

    def known(self, sop_instance_uids: Sequence[str]) -> None:
        """These are here and were not fetched."""
        ...


class Remote(Protocol):
    """One study at one source.

    Raises PullRefused and PullFailed, and nothing else that is foreseen.
    """

    async def places(self) -> list[Place] | None:
        """What the source has of the study; None: it cannot tell, or not cheaply."""
        ...

    async def fetch(self, sink: Sink, here: set[str], places: list[Place] | None) -> None:
        """Brings what is not `here` (SOP Instance UIDs); bringing more is harmless.

        `places` is what `places()` answered; None if it was not asked or could not tell.
        """
        ...

    async def close(self) -> None: ...
