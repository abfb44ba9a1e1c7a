"""Builds the gateway: routes, cross-origin rules, and the refusal to serve a network without sign-in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from isocenter.common.errors import Misconfigured, Transient
from isocenter.common.objects.vault import Vault
from isocenter.common.service import ASGIApp, Health, Ports
from isocenter.common.telemetry import LogEvent
from isocenter.gateway import bulk, handlers, retrieve
from isocenter.gateway.asgi import Endpoint, Handler, HostGuard, Served
from isocenter.gateway.domain import ROOT, Reply, Request, not_found
from isocenter.gateway.loopback import is_loopback
from isocenter.gateway.ports import Context
from isocenter.gateway.settings import LOCALHOST_ORIGINS, LOOPBACK_HOSTS, GatewaySettings

if TYPE_CHECKING:
    from isocenter.common.index.ports import Index

_STUDY = "/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"

SEARCHES: dict[str, Handler] = {
    "/studies": handlers.search_studies,
    f"{_STUDY}/series": handlers.search_series,
    f"{_STUDY}/instances": handlers.search_instances,
    "/series": handlers.search_series,
    f"{_SERIES}/instances": handlers.search_instances,
    "/instances": handlers.search_instances,
}
"""The six resources of PS3.18 table 10.6.1-1."""

RETRIEVALS: dict[str, Handler] = {
    _STUDY: retrieve.retrieve,
    _SERIES: retrieve.retrieve,
    _INSTANCE: retrieve.retrieve,
    f"{_STUDY}/metadata": retrieve.retrieve_metadata,
    f"{_SERIES}/metadata": retrieve.retrieve_metadata,
    f"{_INSTANCE}/metadata": retrieve.retrieve_metadata,
    f"{_INSTANCE}/frames/{{frames}}": bulk.retrieve_frames,
    f"{_INSTANCE}/bulkdata/{{bulk:path}}": bulk.retrieve_bulk,
}

_ABSENT = tuple(
    f"{level}/{resource}"
    for level in (_STUDY, _SERIES, _INSTANCE, f"{_INSTANCE}/frames/{{frames}}")
    for resource in ("rendered", "thumbnail")
)


async def unknown_resource(request: Request, context: Context) -> Reply:
    raise not_found("resource")


class Gateway:
    """QIDO-RS and WADO-RS over the index and the object store."""

    name = "gateway"

    def __init__(self, settings: GatewaySettings, ports: Ports, index: Index) -> None:
        self._settings = settings
        self._ports = ports
        self._index = index
        context = Context(index, Vault(ports.store, ports.sealing), ports.clock, settings.limits)
        public_url = settings.public_url.rstrip("/") if settings.public_url else None
        served = Served(context, ports.telemetry, public_url, settings.trace_window)
        self.asgi: ASGIApp | None = _application(settings, served)

    async def start(self) -> None:
        self._ports.telemetry.log.warning(LogEvent.NO_SIGN_IN, host=self._settings.host)

    async def stop(self) -> None:
        """Nothing to drain: the HTTP server lets requests in hand finish."""

    async def health(self) -> list[Health]:
        """Without the bus: the gateway answers from index and store alone."""
        return [
            await _checked("index", self._index.check, "Check the index database."),
            await _checked("store", self._ports.store.check, "Check the object store."),
        ]


async def _checked(name: str, check: Callable[[], Awaitable[None]], advice: str) -> Health:
    try:
        await check()
    except Transient:
        return Health(name, ok=False, detail=advice)
    return Health(name, ok=True)


def build(settings: GatewaySettings, ports: Ports) -> Gateway:
    """Raises Misconfigured: no index, or an address that others can reach and nobody allowed."""
    if ports.index is None:
        raise Misconfigured("the gateway needs an index")
    check_address(settings.host, settings)
    return Gateway(settings, ports, ports.index)


def check_address(host: str, settings: GatewaySettings) -> None:
    """Raises Misconfigured for an address beyond loopback, unless the settings take the risk by name."""
    if is_loopback(host) or settings.serve_everyone_without_sign_in:
        return
    raise Misconfigured(
        "this release has no sign-in, so the gateway serves the loopback address only;"
        " ISOCENTER_GATEWAY_SERVE_EVERYONE_WITHOUT_SIGN_IN=true"
        " lets whoever reaches the port read every study"
    )


def _application(settings: GatewaySettings, served: Served) -> ASGIApp:
    routes = [
        *_routes(SEARCHES.items(), served, retrieves=False),
        *_routes(RETRIEVALS.items(), served, retrieves=True),
        *_routes(((path, retrieve.not_in_this_release) for path in _ABSENT), served, retrieves=False),
        Route("/{path:path}", Endpoint("unmatched", unknown_resource, served, retrieves=False)),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_origin_regex=LOCALHOST_ORIGINS if settings.cors_localhost else None,
        allow_methods=("GET", "HEAD"),
        allow_headers=("accept", "content-type", "if-none-match", "range", "traceparent", "tracestate"),
        expose_headers=(
            "accept-ranges",
            "content-length",
            "content-range",
            "etag",
            "last-modified",
            "warning",
        ),
        max_age=600,
    )
    application = Starlette(routes=routes, middleware=[cors])
    application.router.redirect_slashes = False
    return guarded(application, settings)


def guarded(application: ASGIApp, settings: GatewaySettings) -> ASGIApp:
    """The application behind the guard of the Host field, for whatever shares the gateway's origin."""
    if settings.serve_everyone_without_sign_in and not settings.allowed_hosts:
        return application
    public = urlsplit(settings.public_url or "").hostname
    known = (*LOOPBACK_HOSTS, settings.host, public, *settings.allowed_hosts)
    return HostGuard(application, filter(None, known))


def _routes(table: Iterable[tuple[str, Handler]], served: Served, *, retrieves: bool) -> list[Route]:
    return [
        Route(ROOT + path, Endpoint(_template(ROOT + path), handler, served, retrieves=retrieves))
        for path, handler in table
    ]


def _template(path: str) -> str:
    return path.replace(":path}", "}")
