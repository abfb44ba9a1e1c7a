"""A service that never stops by itself, and a request to it that never ends. Run by test_stop.py."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from pydantic_settings import SettingsConfigDict

from isocenter.common.runtime import run_service
from isocenter.common.service import Health, Ports
from isocenter.common.settings import PREFIX, ServiceSettings


class StubbornSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}STUBBORN_")


class Stubborn:
    name = "stubborn"

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.Event().wait()

    async def start(self) -> None: ...

    async def stop(self) -> None:
        await asyncio.Event().wait()

    async def health(self) -> list[Health]:
        return [Health("stubborn", ok=True)]


def build(settings: StubbornSettings, ports: Ports) -> Any:
    return Stubborn()


if __name__ == "__main__":
    sys.exit(run_service("stubborn", build, StubbornSettings))
