"""The shape every service has, so that `python -m isocenter.<name>` and `isocenter up` run the same code.

A service is built from its settings and `Ports`. It never looks at the environment itself and never opens a
connection of its own: `isocenter.common.runtime` does both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from isocenter.common.bus.factory import Bus
    from isocenter.common.clock import Clock
    from isocenter.common.index.ports import Index
    from isocenter.common.keys import SiteKeys
    from isocenter.common.objects.ports import ObjectStore
    from isocenter.common.objects.sealing import Sealing
    from isocenter.common.telemetry import Telemetry

Scope = MutableMapping[str, Any]
ASGIApp = Callable[
    [
        Scope,
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside the process that a service may use.

    `bus` is per service (its own broker, consumer groups and telemetry); store, index and keys are shared.
    Ingest answers storage commitment and plans pulls from the index, and never looks at it on the way of an
    instance: the cost of one must not grow with the archive.
    """

    bus: Bus
    store: ObjectStore
    sealing: Sealing
    keys: SiteKeys
    telemetry: Telemetry
    clock: Clock
    index: Index | None = None
    peers_file: Path | None = None
    """For `Peers.load`, which may be called again when the file has changed."""
    disks: tuple[Path, ...] = ()
    """Directories of this machine that fill up with what is stored."""
    data_dir: Path | None = None
    """Of this machine; None: nothing is kept here."""
    bus_embedded: bool = False
    """Events are kept by this process, on the same machine as its objects."""


@dataclass(frozen=True, slots=True)
class Health:
    """One check of a readiness report: `detail` says what to do when `ok` is False; never PHI."""

    name: str
    ok: bool
    detail: str = ""


class Service(Protocol):
    """A running part of the platform."""

    name: str
    asgi: ASGIApp | None
    """HTTP routes of the service's own (without health and metrics), or None."""

    async def start(self) -> None:
        """Returns when the service takes work. Raises if it cannot."""
        ...

    async def stop(self) -> None:
        """Graceful drain: takes no new work, finishes what is in hand, closes its bus. Bounded in time."""
        ...

    async def health(self) -> list[Health]:
        """Readiness, told truthfully: includes the consume loops of the bus."""
        ...
