"""Requests made to cost time or to reach what they should not."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from isocenter.gateway.app import guarded
from isocenter.gateway.negotiation import parse_accept
from isocenter.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    "tail", [" " * 1_000_000, ";a" + " " * 1_000_000, ";" + "a" * 1_000_000, ';a="' + '\\"' * 500_000]
)
def test_an_accept_field_costs_time_in_proportion_to_its_length(tail: str) -> None:
    """Read in proportion to its square, a field of a megabyte would take hours."""
    assert [found.media_type for found in parse_accept("a/b" + tail + "x")] == ["a/b"]


async def test_what_shares_the_origin_is_guarded_against_dns_rebinding_too() -> None:
    async def taken(_: object) -> PlainTextResponse:
        return PlainTextResponse("taken")

    application = Starlette(routes=[Route("/dicom-web/studies", taken, methods=["POST"])])
    transport = httpx.ASGITransport(guarded(application, GatewaySettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.post("/dicom-web/studies")).status_code == 200
        foreign = await client.post("/dicom-web/studies", headers={"host": "evil.example"})
        assert foreign.status_code == 421
