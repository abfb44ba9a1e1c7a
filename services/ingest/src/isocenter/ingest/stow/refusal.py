"""An answer before the body has come: said at once, and the connection kept until the client has heard it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from isocenter.ingest.stow.response import problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LINGER_SECONDS: Final = 10.0
"""What comes in this time is dropped. A connection closed under a client that still sends is reset, and many
clients lose the answer that they had received with it.
"""


class EarlyProblem:
    """A problem document as an ASGI application, which does not wait for the request's body."""

    def __init__(self, status: int, detail: str, *, retry_after: int) -> None:
        self._response = problem(status, detail, {"Retry-After": str(retry_after), "Connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._response
        await send(
            {"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers}
        )
        # The whole document, by its length; the server closes the connection after the last word only.
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                more = True
                while more:
                    more = (await receive()).get("more_body", False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
