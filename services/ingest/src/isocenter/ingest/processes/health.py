"""`/livez`, `/readyz` and `/metrics` of the whole: what a probe would hear from one process alone."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from isocenter.common.telemetry.metrics import CONTENT_TYPE
from isocenter.ingest.processes.pages import Page

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx
    from starlette.requests import Request

    from isocenter.ingest.processes.worker import Worker


class GroupHealth:
    """Speaks for the processes.

    * live: always, since processes that hang are ended and started anew from here.
    * ready: at least one process is, and none that has taken connections says that it is not. Who starts, or
      was lost, listens on no port and is no reason to turn senders away.
    * metrics: of all, added up. What a process counted that is gone stays counted, or rates would jump.
    """

    def __init__(self, workers: Sequence[Worker], client: httpx.AsyncClient) -> None:
        self._workers = workers
        self._client = client
        self._draining = False
        self._last: dict[int, tuple[int | None, str]] = {}
        self._gone: list[str] = []
        self.asgi = Starlette(
            routes=[
                Route("/livez", self._livez),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ]
        )

    def drain(self) -> None:
        self._draining = True

    async def _livez(self, request: Request) -> Response:
        return _json(200, {"live": True, "processes": len(self._workers)})

    async def _readyz(self, request: Request) -> Response:
        answers = await asyncio.gather(*(each.get(self._client, "/readyz") for each in self._workers))
        checks: list[dict[str, Any]] = []
        serving = failing = 0
        for worker, answer in zip(self._workers, answers, strict=True):
            ready = answer is not None and answer.status_code == 200
            serving += ready
            worker.served = worker.served or ready
            counts = worker.served and worker.pid is not None
            failing += counts and not ready
            if not counts:
                detail = "starts, or was lost and is started anew"
                checks.append({"service": worker.name, "name": "process", "ok": True, "detail": detail})
            elif answer is None:
                detail = "it does not answer"
                checks.append({"service": worker.name, "name": "process", "ok": False, "detail": detail})
            else:
                checks += [each | {"service": worker.name} for each in answer.json()["checks"]]
        if self._draining:
            detail = "stopping: takes no new work"
            checks.append({"service": "platform", "name": "draining", "ok": False, "detail": detail})
        ready = bool(serving) and not failing and not self._draining
        return _json(200 if ready else 503, {"ready": ready, "checks": checks})

    async def _metrics(self, request: Request) -> Response:
        answers = await asyncio.gather(*(each.get(self._client, "/metrics") for each in self._workers))
        for worker, answer in zip(self._workers, answers, strict=True):
            pid, text = self._last.get(worker.number, (None, ""))
            if pid is not None and pid != worker.pid:
                self._bury(text)
                self._last.pop(worker.number)
            if answer is not None and answer.status_code == 200:
                self._last[worker.number] = worker.pid, answer.text
        page = Page()
        for text in self._gone:
            page.add(text, gone=True)
        for pid, text in self._last.values():
            page.add(text, gone=pid is None)
        return Response(page.text(), media_type=CONTENT_TYPE)

    def _bury(self, text: str) -> None:
        """Pages of the dead are one, however many there were."""
        page = Page()
        for each in (*self._gone, text):
            page.add(each, gone=True)
        self._gone = [page.text()]


def _json(status: int, body: dict[str, Any]) -> Response:
    return Response(json.dumps(body), status, {"Cache-Control": "no-store"}, media_type="application/json")
