"""Builds the service: the DICOM port and the STOW-RS routes over one intake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette

from isocenter.common.errors import IsocenterError
from isocenter.common.service import Health
from isocenter.ingest.dimse.association import Timing
from isocenter.ingest.dimse.negotiation import Policy
from isocenter.ingest.dimse.server import DicomListener
from isocenter.ingest.pipeline import Intake, IntakeLimits
from isocenter.ingest.stow.response import problem
from isocenter.ingest.stow.routes import StowLimits, routes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from isocenter.common.service import ASGIApp, Ports
    from isocenter.ingest.settings import IngestSettings

NAME: Final = "ingest"


def build(settings: IngestSettings, ports: Ports) -> IngestService:
    """The service, not started yet."""
    return IngestService(settings, ports)


async def _defect(request: Request, error: Exception) -> Response:
    """Starlette answers first and then raises on, so the server's log names the defect."""
    return problem(500, "The request failed by a defect of the archive.")


class IngestService:
    """C-STORE, C-ECHO and STOW-RS."""

    name = NAME

    def __init__(self, settings: IngestSettings, ports: Ports) -> None:
        self._settings = settings
        self._ports = ports
        limits = IntakeLimits(
            header_bytes=settings.max_header_bytes, publish_seconds=settings.publish_timeout_seconds
        )
        intake = Intake(ports, limits)
        self._debts = intake.debts
        self._listener = DicomListener(
            intake=intake,
            policy=Policy(
                ae_title=settings.ae_title,
                max_pdu=settings.max_pdu_bytes,
                require_called_ae_title=settings.require_called_ae_title,
                accept_unknown_sop_classes=settings.accept_unknown_sop_classes,
            ),
            max_associations=settings.max_associations,
            timing=Timing(associate=settings.associate_timeout_seconds, idle=settings.idle_timeout_seconds),
        )
        self.dicom_port = settings.dicom_port
        """The port in use once the service has started: the real one where the setting is 0."""
        stow = StowLimits(parts=settings.stow_max_parts, idle_seconds=settings.idle_timeout_seconds)
        self.asgi: ASGIApp | None = Starlette(
            routes=routes(intake, stow, public_url=settings.public_url),
            exception_handlers={Exception: _defect},
        )

    async def start(self) -> None:
        """Returns when the DICOM port is open.

        Raises:
            OSError: the port cannot be bound.
            BusUnavailable: nothing could be acknowledged.
        """
        await self._ports.bus.start()
        try:
            self.dicom_port = await self._listener.start(self._settings.dicom_host, self._settings.dicom_port)
        except BaseException:
            await self._ports.bus.stop()
            raise
        self._debts.start()

    async def stop(self) -> None:
        """Drains associations, then closes the bus. STOW-RS requests are drained by the HTTP server."""
        try:
            await self._listener.stop(drain=self._settings.association_drain_seconds)
        finally:
            await self._debts.stop()
            await self._ports.bus.stop()

    async def health(self) -> list[Health]:
        """Ready only if an instance sent now could be acknowledged."""
        return [self._port_health(), await self._store_health(), *await self._ports.bus.health()]

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
