"""`/livez`, `/readyz` and `/metrics` for one or several services of a process, as plain ASGI.

* `/livez`: the event loop answers, and no consumer of events is stuck for good. Restart the process when it
  fails; nothing else is a reason to.
* `/readyz`: 200 when every check of every service passes, else 503; the body names each check either way.
* `/metrics`: Prometheus text format, the checks among them.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from isocenter.common.service import Health, Scope, Service
from isocenter.common.telemetry import Gauge, LogEvent, Telemetry
from isocenter.common.telemetry.metrics import CONTENT_TYPE, prometheus_text
from isocenter.common.telemetry.redact import safe_text

CHECK_SECONDS = 3.0
LOOK_SECONDS = 5.0
"""A scrape looks anew when the last look is older: nothing else need ask for `/readyz`."""
PATHS = frozenset({"/livez", "/readyz", "/metrics"})

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Watched:
    """A service and the telemetry that goes with it."""

    service: Service
    telemetry: Telemetry
    alive: Callable[[], bool] = lambda: True
    """False when only a new process can help; asked with each `/livez`, so it must not wait for anything."""


class HealthApp:
    """An ASGI application. `drain()` makes `/readyz` fail before the services stop taking work."""

    def __init__(self, watched: Sequence[Watched], *, check_seconds: float = CHECK_SECONDS) -> None:
        self._watched = tuple(watched)
        self._check_seconds = check_seconds
        self._draining = False
        self._ready: dict[str, bool] = {}
        self._seen: dict[str, set[str]] = {}
        self._looked_at = -math.inf
        self._hung: dict[str, asyncio.Task[list[Health]]] = {}
        """Looks that did not end in time and have not since: a thread that waits for a disk, say."""

    def drain(self) -> None:
        self._draining = True

    async def report(self) -> tuple[bool, list[tuple[str, Health]]]:
        """Every check with its service's name; never raises and never takes longer than the bound."""
        self._looked_at = time.monotonic()
        results = await asyncio.gather(*(self._check(each) for each in self._watched))
        checks = [
            (each.service.name, health)
            for each, found in zip(self._watched, results, strict=True)
            for health in found
        ]
        if self._draining:
            checks.append(("platform", Health("draining", ok=False, detail="stopping: takes no new work")))
        return all(health.ok for _, health in checks), checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("health answers HTTP only")
        path, method = scope["path"], scope["method"]
        if path not in PATHS:
            await _answer(send, method, 404, b"", "text/plain")
        elif method not in {"GET", "HEAD"}:
            await _answer(send, method, 405, b"", "text/plain", (b"allow", b"GET, HEAD"))
        elif path == "/livez":
            dead = [each.service.name for each in self._watched if not each.alive()]
            body_of = {"live": not dead} | ({"restart": dead} if dead else {})
            page = json.dumps(body_of, separators=(",", ":")).encode()
            await _answer(send, method, 503 if dead else 200, page, "application/json")
        elif path == "/readyz":
            ready, checks = await self.report()
            rows = [
                {"service": service, "name": check.name, "ok": check.ok, "detail": safe_text(check.detail)}
                for service, check in checks
            ]
            body = {"ready": ready, "checks": rows}
            await _answer(send, method, 200 if ready else 503, json.dumps(body).encode(), "application/json")
        else:
            if time.monotonic() - self._looked_at > LOOK_SECONDS:
                await self.report()
            page = prometheus_text(each.telemetry.metrics for each in self._watched)
            await _answer(send, method, 200, page, CONTENT_TYPE)

    async def _check(self, watched: Watched) -> list[Health]:
        name = watched.service.name
        try:
            found = await self._ask(watched)
        except TimeoutError:
            found = [Health(name, ok=False, detail=f"no answer within {self._check_seconds:g} s")]
        except Exception as error:  # noqa: BLE001 - whatever a check raises means: not ready
            found = [Health(name, ok=False, detail=f"check failed: {type(error).__name__}")]
        self._note(watched, found)
        return found

    async def _ask(self, watched: Watched) -> list[Health]:
        """Not `asyncio.timeout`: a check that cannot be cancelled would keep its caller. Such a one is left
        behind, and none is sent after it.

        Raises:
            TimeoutError
            Exception: whatever the check raises.
        """
        name = watched.service.name
        if (hung := self._hung.get(name)) is not None and not hung.done():
            raise TimeoutError
        task = asyncio.ensure_future(watched.service.health())
        try:
            done, _ = await asyncio.wait({task}, timeout=self._check_seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            self._hung[name] = task
            task.add_done_callback(_forget)
            task.cancel()
            raise TimeoutError
        return task.result()

    def _note(self, watched: Watched, found: list[Health]) -> None:
        failed = [health for health in found if not health.ok]
        before = self._ready.get(watched.service.name, True)
        self._ready[watched.service.name] = not failed
        watched.telemetry.metrics.set(Gauge.READY, 0 if failed else 1)
        results = {health.name: health.ok for health in found}
        seen = self._seen.setdefault(watched.service.name, set())
        # A check that is not told of any more was the sign of a look that failed as a whole.
        seen.update(results)
        for name in seen:
            watched.telemetry.metrics.set(Gauge.CHECK, int(results.get(name, not failed)), check=name)
        if failed and before:
            watched.telemetry.log.warning(LogEvent.NOT_READY, check=failed[0].name, detail=failed[0].detail)
        elif not failed and not before:
            watched.telemetry.log.info(LogEvent.READY_AGAIN)


def _forget(task: asyncio.Task[list[Health]]) -> None:
    """What it says came too late for anybody."""
    if not task.cancelled():
        task.exception()


async def _answer(
    send: Send, method: str, status: int, body: bytes, content_type: str, *headers: tuple[bytes, bytes]
) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
