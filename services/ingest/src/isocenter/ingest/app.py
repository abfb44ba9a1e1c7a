"""Builds the service: the DICOM port and the STOW-RS routes over one intake."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette

from isocenter.common.errors import IsocenterError, Misconfigured
from isocenter.common.events.models import StudyAnnounced
from isocenter.common.peers import Peers
from isocenter.common.service import Health
from isocenter.ingest.commitment.routes import commitment_routes
from isocenter.ingest.commitment.service import StorageCommitment
from isocenter.ingest.dimse.access import Access
from isocenter.ingest.dimse.association import Timing
from isocenter.ingest.dimse.negotiation import Policy
from isocenter.ingest.dimse.server import DicomListener
from isocenter.ingest.dimse.tls import client_context
from isocenter.ingest.listening import plain_address, tls_files
from isocenter.ingest.pipeline import Intake, IntakeLimits
from isocenter.ingest.pull.puller import GROUP, Puller
from isocenter.ingest.pull.sources import Sources
from isocenter.ingest.stow.response import problem
from isocenter.ingest.stow.routes import StowLimits, routes
from isocenter.ingest.watermarks import Marks

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from isocenter.common.service import ASGIApp, Ports
    from isocenter.ingest.settings import IngestSettings

NAME: Final = "ingest"
KEYS_SECONDS: Final = 1.0
"""How long readiness waits for the key table: less than a probe waits for readiness."""
POLL_MARGIN_SECONDS: Final = 120.0
"""Beyond the limit of a pull, until its consumer counts as gone."""


def build(settings: IngestSettings, ports: Ports) -> IngestService:
    """The service, not started yet. Raises Misconfigured: settings or a file of the site cannot be used."""
    if settings.processes > 1 and ports.bus_embedded:
        raise Misconfigured(
            f"{settings.variable('processes')}={settings.processes}: the embedded bus belongs to one process"
        )
    return IngestService(settings, ports)


def _stored_is_enough(settings: IngestSettings, ports: Ports) -> bool:
    if settings.acknowledge is None:
        return ports.bus_embedded
    return settings.acknowledge == "stored"


def _of_senders(check: Health) -> Health:
    """A pull that stands still is said, but is no reason to turn senders away."""
    if check.name.startswith(f"bus.{NAME}.{GROUP}"):
        return Health(check.name, ok=True, detail=check.detail)
    return check


async def _defect(request: Request, error: Exception) -> Response:
    """Starlette answers first and then raises on, so the server's log names the defect."""
    return problem(500, "The request failed by a defect of the archive.")


class IngestService:
    """C-STORE, C-ECHO, STOW-RS, storage commitment and the pull of announced studies."""

    name = NAME

    def __init__(self, settings: IngestSettings, ports: Ports) -> None:
        self._settings = settings
        self._ports = ports
        limits = IntakeLimits(
            header_bytes=settings.max_header_bytes,
            publish_seconds=settings.publish_timeout_seconds,
            marks=Marks(settings.min_free_bytes, max(settings.resume_free_bytes, settings.min_free_bytes)),
            unannounced=settings.max_unannounced if _stored_is_enough(settings, ports) else 0,
        )
        self.intake = intake = Intake(ports, limits)
        self._debts = intake.debts
        self._plain, tls = plain_address(settings), tls_files(settings)
        self._has_tls = tls is not None
        self._access = Access(
            tls, ports.peers_file, strangers=settings.accept_unknown_peers, signals=intake.signals
        )
        self._puller = self._subscribe(intake)
        self._commitment: StorageCommitment | None = None
        if ports.index is not None:
            self._commitment = StorageCommitment(
                settings,
                ports,
                ports.index,
                intake.vault,
                peers=lambda: self._access.admission.peers or Peers(),
                tls=None if tls is None else lambda: client_context(tls),
            )
            intake.commitments = self._commitment.desk
        self._listener = DicomListener(
            intake=intake,
            policy=Policy(
                ae_title=settings.ae_title,
                max_pdu=settings.max_pdu_bytes,
                require_called_ae_title=settings.require_called_ae_title,
                accept_unknown_sop_classes=settings.accept_unknown_sop_classes,
                commitment=self._commitment is not None,
            ),
            max_associations=settings.max_associations,
            timing=Timing(associate=settings.associate_timeout_seconds, idle=settings.idle_timeout_seconds),
            access=self._access,
        )
        self.dicom_port = settings.dicom_port
        """The port in use once the service has started: the real one where the setting is 0."""
        self.dicom_tls_port = settings.dicom_tls_port
        """The same for TLS."""
        stow = StowLimits(parts=settings.stow_max_parts, idle_seconds=settings.idle_timeout_seconds)
        self.asgi: ASGIApp | None = Starlette(
            routes=[
                *routes(intake, stow, public_url=settings.public_url),
                *(commitment_routes(self._commitment.desk) if self._commitment is not None else ()),
            ],
            exception_handlers={Exception: _defect},
        )

    def _subscribe(self, intake: Intake) -> Puller:
        """Announcements are read even where no source is listed. They are dead letters then, which an
        operator sees and can replay; on their topic they would wait unseen, and expire.

        Raises:
            Misconfigured: the file of sources cannot be used.
        """
        limit, bus = self._settings.pull_limit_seconds, self._ports.bus
        puller = Puller(
            intake,
            Sources.load(self._settings.sources_file),
            index=self._ports.index,
            our_ae_title=self._settings.ae_title,
            limit_seconds=limit,
        )
        bus.subscribe(
            GROUP,
            StudyAnnounced.topic,
            {StudyAnnounced: puller.study_announced},
            max_poll_interval_ms=int(1000 * (limit + POLL_MARGIN_SECONDS)),
            # One attempt is long: others of it belong to the retry topic, and a long one is no standstill.
            policy=replace(bus.policy, tries=1, stall=limit + bus.policy.stall),
        )
        return puller

    async def start(self) -> None:
        """Returns when the DICOM port is open.

        Raises:
            OSError: the port cannot be bound.
            BusUnavailable: nothing could be acknowledged.
        """
        await self._ports.bus.start()
        try:
            await self.intake.watermarks.start()
            await self._listen()
        except BaseException:
            await self.intake.watermarks.stop()
            await self._ports.bus.stop()
            raise
        self._debts.start()
        self._access.start()
        if self._commitment is not None:
            self._commitment.start()

    async def stop(self) -> None:
        """Drains associations, then closes the bus. STOW-RS requests are drained by the HTTP server."""
        try:
            await self._access.stop()
            await self._listener.stop(drain=self._settings.association_drain_seconds)
        finally:
            if self._commitment is not None:
                await self._commitment.stop()
            await self._debts.stop()
            await self.intake.watermarks.stop()
            # The bus hears of the stop before the end of the pull in hand: its announcement comes again.
            self._puller.halt()
            await self._ports.bus.stop()

    async def health(self) -> list[Health]:
        """Ready only if an instance sent now could be acknowledged. The index is not asked: without it
        storage commitment waits, and nobody who stores does.
        """
        return [
            self._port_health(),
            self.intake.watermarks.health(),
            await self._store_health(),
            await self._keys_health(),
            *map(_of_senders, await self._ports.bus.health()),
        ]

    async def _listen(self) -> None:
        shared = self._settings.shared_ports
        if self._plain is not None:
            self.dicom_port = await self._listener.start(*self._plain, shared=shared)
        if self._has_tls:
            self.dicom_tls_port = self._listener.start_tls(
                self._settings.dicom_tls_host, self._settings.dicom_tls_port, shared=shared
            )

    def _port_health(self) -> Health:
        if self._listener.listening:
            return Health("dicom-port", ok=True)
        return Health(
            "dicom-port", ok=False, detail="the DICOM port is not open: the service starts or stops"
        )

    async def _store_health(self) -> Health:
        try:
            await self._ports.store.check()
        except IsocenterError as error:
            return Health("object-store", ok=False, detail=f"{error.code}: check free space and permissions")
        return Health("object-store", ok=True)

    async def _keys_health(self) -> Health:
        try:
            async with asyncio.timeout(KEYS_SECONDS):
                await self._ports.sealing.check()
        except (IsocenterError, TimeoutError) as error:
            # Told, and no reason to turn senders away: the table is one for all replicas, and studies whose
            # key is in use go on. A new one hears a DICOM status, which says more than a closed port.
            said = error.code if isinstance(error, IsocenterError) else f"no answer in {KEYS_SECONDS:g} s"
            detail = f"{said}: new studies are refused; check MongoDB or the data directory"
            return Health("study-keys", ok=True, detail=detail)
        return Health("study-keys", ok=True)
