"""Settings of the gateway: `ISOCENTER_GATEWAY_*`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_settings import NoDecode, SettingsConfigDict

from isocenter.common.settings import PREFIX, ServiceSettings
from isocenter.gateway.ports import Limits

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
LOCALHOST_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"


def _split(value: object) -> object:
    return (
        tuple(filter(None, (item.strip() for item in value.split(",")))) if isinstance(value, str) else value
    )


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Comma separated in the environment."""


class GatewaySettings(ServiceSettings):
    """What an operator can set.

    Attributes:
        serve_everyone_without_sign_in: allows an address other than loopback. This release has no sign-in:
            whoever reaches the port reads every study.
        allowed_hosts: names in the Host field that are answered, beside those of loopback. A web page that
            points its own name at this address is not (DNS rebinding). `*` answers any.
        cors_origins: origins of viewers that may read across origins; none by default.
        cors_localhost: also allow every port of localhost, for viewers beside an embedded platform.
        public_url: the service root as clients reach it, such as https://pacs.example/dicom-web; by default
            it is taken from each request.
        default_results, max_results: results of one search without and with `limit`.
        max_inflated_bytes: of a deflated object that frames or bulk data are read from.
        trace_window_seconds: how long after settling a retrieval joins the study's trace.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX + "GATEWAY_")

    serve_everyone_without_sign_in: bool = False
    allowed_hosts: Names = ()
    cors_origins: Names = ()
    cors_localhost: bool = False
    public_url: Annotated[str, StringConstraints(pattern=r"^https?://[\x21-\x7e]+$")] | None = None
    default_results: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_results: Annotated[int, Field(ge=1, le=100_000)] = 5000
    max_inflated_bytes: Annotated[int, Field(ge=1)] = 2**32
    trace_window_seconds: Annotated[float, Field(ge=0)] = 900

    @property
    def limits(self) -> Limits:
        return Limits(min(self.default_results, self.max_results), self.max_results, self.max_inflated_bytes)

    @property
    def trace_window(self) -> timedelta:
        return timedelta(seconds=self.trace_window_seconds)
