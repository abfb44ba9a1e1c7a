"""Storage commitment as the service holds it: the desk that takes requests, the worker that answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isocenter.ingest.commitment.checking import Checker
from isocenter.ingest.commitment.desk import Desk
from isocenter.ingest.commitment.domain import Patience
from isocenter.ingest.commitment.reporting import Reporter
from isocenter.ingest.commitment.signals import CommitmentSignals
from isocenter.ingest.commitment.worker import Worker

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from isocenter.common.index.ports import Index
    from isocenter.common.objects.vault import Vault
    from isocenter.common.peers import Peers
    from isocenter.common.service import Ports
    from isocenter.ingest.settings import IngestSettings


class StorageCommitment:
    """Built where there is an index. It is the only part of ingest that uses it beside the pull of announced
    studies, and never on the way of an instance.

    Args:
        settings: of ingest.
        ports: of ingest.
        index: says where instances are, and keeps the requests.
        vault: where they are read back from.
        peers: those of the site, as they are listed now.
        tls: what associations to peers with `tls` are opened with; None: there can be none.
    """

    def __init__(
        self,
        settings: IngestSettings,
        ports: Ports,
        index: Index,
        vault: Vault,
        *,
        peers: Callable[[], Peers],
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        signals = CommitmentSignals(ports.telemetry)
        self._worker = Worker(
            index=index,
            clock=ports.clock,
            checker=Checker(index, vault),
            reporter=Reporter(settings.ae_title, tls=tls),
            peers=peers,
            patience=Patience(
                unknown=settings.commitment_unknown_seconds,
                give_up=settings.commitment_give_up_hours * 3600,
                keep=settings.commitment_keep_days * 86400,
            ),
            signals=signals,
        )
        self.desk = Desk(
            index=index,
            clock=ports.clock,
            peers=peers,
            signals=signals,
            accepted=self._worker.nudge,
        )

    def start(self) -> None:
        """Begins to work off what is there, also from earlier processes."""
        self._worker.start()

    async def stop(self) -> None:
        """Leaves what is in hand to the next process."""
        await self._worker.stop()
