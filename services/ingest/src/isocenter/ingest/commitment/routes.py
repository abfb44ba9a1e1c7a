"""POST and GET /dicom-web/commitment-requests/{transaction} (PS3.18 sections 13.4 and 13.5)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import Transient
from isocenter.ingest.commitment.domain import MAX_DATA_SET_BYTES, Refusal, Refused
from isocenter.ingest.commitment.representation import DICOM_JSON, DICOM_XML, references_in, result
from isocenter.ingest.stow.negotiation import parse_media_type
from isocenter.ingest.stow.response import problem
from isocenter.ingest.stow.routes import ROOT

if TYPE_CHECKING:
    from isocenter.common.index.commitments import Commitment
    from isocenter.ingest.commitment.desk import Desk

PATH: Final = f"{ROOT}/commitment-requests/{{transaction}}"
RETRY_AFTER_SECONDS: Final = 2
SYNCHRONOUS_SECONDS: Final = 2.0
"""A request that is answered within this is answered at once; others are to be asked after."""
READ_SECONDS: Final = 30.0
"""For a body, and for its turn if it is long."""
SHORT_BYTES: Final = 256 << 10
"""A body up to this is read beside others; of longer ones there is one at a time."""
_LOOK_SECONDS: Final = 0.1
_TYPES: Final = {DICOM_JSON: DICOM_JSON, "application/json": DICOM_JSON, DICOM_XML: DICOM_XML}
_MAX_RANGES: Final = 64


def commitment_routes(desk: Desk) -> list[Route]:
    """The one resource of chapter 13."""
    endpoint = CommitmentEndpoint(desk)
    return [
        Route(PATH, endpoint.post, methods=["POST"]),
        Route(PATH, endpoint.get, methods=["GET"]),
    ]


class CommitmentEndpoint:
    """HTTP in front of the desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._long = asyncio.Semaphore(1)
        """One long body at a time is read and taken apart: that may cost many times its size in memory."""

    async def post(self, request: Request) -> Response:
        transaction: str = request.path_params["transaction"]
        answer_type = accepted(request.headers.get("accept"))
        if not is_valid_uid(transaction):
            return problem(400, "The transaction UID in the path is no UID (PS3.5 section 9.1).")
        if answer_type is None:
            return problem(406, f"The result is available as {DICOM_JSON} and {DICOM_XML}.")
        body_type = _TYPES.get(parse_media_type(request.headers.get("content-type", ""))[0])
        if body_type is None:
            return problem(415, f"Send {DICOM_JSON} or {DICOM_XML}.")
        try:
            async with AsyncExitStack() as turn:
                async with asyncio.timeout(READ_SECONDS):
                    body = await self._body(request, turn)
                references = await asyncio.to_thread(references_in, body, body_type)
                del body
            commitment = await self._desk.post(transaction, references)
            return self._answer(await self._wait(commitment), answer_type)
        except ClientDisconnect:
            return problem(400, "The body did not come to its end.")
        except TimeoutError:
            return problem(408, "The body came too slowly. Send it again.", {"Connection": "close"})
        except Refused as refused:
            return _refusal(refused.reason)
        except Transient:
            return _unavailable()

    async def get(self, request: Request) -> Response:
        transaction: str = request.path_params["transaction"]
        answer_type = accepted(request.headers.get("accept"))
        if answer_type is None:
            return problem(406, f"The result is available as {DICOM_JSON} and {DICOM_XML}.")
        try:
            commitment = await self._desk.get(transaction) if is_valid_uid(transaction) else None
        except Transient:
            return _unavailable()
        if commitment is None:
            return problem(
                404, "No commitment request of this transaction UID is known, or it is too long ago."
            )
        return self._answer(commitment, answer_type)

    async def _body(self, request: Request, turn: AsyncExitStack) -> bytes:
        """The whole body, and with a long one the turn to keep it.

        Raises:
            Refused: it is longer than may be, whatever its header field said.
        """
        body, waited = bytearray(), False
        async for piece in request.stream():
            if not waited and len(body) + len(piece) > SHORT_BYTES:
                await turn.enter_async_context(self._long)
                waited = True
            body += piece
            if len(body) > MAX_DATA_SET_BYTES:
                raise Refused(Refusal.TOO_LARGE)
        return bytes(body)

    async def _wait(self, commitment: Commitment) -> Commitment:
        """The request as it stands when it is answered, or when that takes too long to wait for."""
        for _ in range(round(SYNCHRONOUS_SECONDS / _LOOK_SECONDS)):
            current = await self._desk.get(commitment.transaction_uid)
            if current is None or current.checked_at is not None:
                return current or commitment
            await asyncio.sleep(_LOOK_SECONDS)
        return commitment

    def _answer(self, commitment: Commitment, answer_type: str) -> Response:
        if commitment.checked_at is None:
            return Response(status_code=202, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        return Response(result(commitment, answer_type), media_type=answer_type)


def accepted(accept: str | None) -> str | None:
    """The type of the answer; None: there is none that the client takes."""
    if accept is None or not accept.strip():
        return DICOM_JSON
    best: tuple[float, str] | None = None
    for item in accept.split(",")[:_MAX_RANGES]:
        kind, parameters = parse_media_type(item)
        offered = _TYPES.get(kind) or (DICOM_JSON if kind in {"*/*", "application/*"} else None)
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if offered is not None and quality > 0 and (best is None or quality > best[0]):
            best = (quality, offered)
    return None if best is None else best[1]


def _refusal(reason: Refusal) -> Response:
    if reason is Refusal.DUPLICATE_TRANSACTION:
        return problem(409, "The transaction UID is in use. GET this resource for its result.")
    if reason is Refusal.TOO_LARGE:
        return problem(413, "The request is longer than 16 MiB or has more than 100,000 references.")
    return problem(
        400, "The payload is no Storage Commitment Request: see PS3.18 table J.1-1 for what must be in it."
    )


def _unavailable() -> Response:
    return problem(
        503,
        "The archive cannot take or look up requests for storage commitment now.",
        {"Retry-After": str(5 * RETRY_AFTER_SECONDS)},
    )
