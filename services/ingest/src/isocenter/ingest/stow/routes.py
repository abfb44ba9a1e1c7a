"""POST /dicom-web/studies and /dicom-web/studies/{study} (PS3.18 section 10.5)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route

from isocenter.common.dicom.uids import is_valid_uid
from isocenter.common.errors import RejectReason
from isocenter.common.events.models import Protocol
from isocenter.ingest.domain import Outcome
from isocenter.ingest.stow.multipart import (
    MalformedMultipart,
    MultipartReader,
    PartBegin,
    PartData,
)
from isocenter.ingest.stow.negotiation import (
    DICOM,
    BadContentType,
    UnsupportedMediaType,
    accepts_dicom_json,
    body_type,
    parse_media_type,
)
from isocenter.ingest.stow.refusal import EarlyProblem
from isocenter.ingest.stow.response import DICOM_JSON, problem, store_response
from isocenter.ingest.watermarks import RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from starlette.responses import Response

    from isocenter.ingest.pipeline import Intake, Transfer
    from isocenter.ingest.receiver import InstanceReceiver

ROOT: Final = "/dicom-web"
SENDER: Final = "stow"
"""Sender of an HTTP client that is not signed in."""


@dataclass(frozen=True, slots=True)
class StowLimits:
    """Bounds of one request.

    Attributes:
        parts: instances.
        in_hand: instances that may be on their way to durability while the next ones are read.
        idle_seconds: of waiting for the sender, in which `progress` bytes must come.
        progress: bytes; who sends one after the other would keep the request for ever.
    """

    parts: int = 10_000
    in_hand: int = 8
    idle_seconds: float = 30.0
    progress: int = 1024


class _TooSlow(Exception):
    """The body does not come."""


def routes(intake: Intake, limits: StowLimits | None = None, *, public_url: str | None = None) -> list[Route]:
    """The two resources that take instances."""
    endpoint = StoreEndpoint(intake, limits or StowLimits(), public_url)
    return [
        Route(f"{ROOT}/studies", endpoint.store, methods=["POST"]),
        Route(f"{ROOT}/studies/{{study}}", endpoint.store, methods=["POST"]),
    ]


class StoreEndpoint:
    """Checks the request's header, streams its body into the intake, and answers."""

    def __init__(self, intake: Intake, limits: StowLimits, public_url: str | None) -> None:
        self._intake = intake
        self._limits = limits
        self._public_url = public_url.rstrip("/") if public_url else None

    async def store(self, request: Request) -> Response | EarlyProblem:
        study: str | None = request.path_params.get("study")
        if study is not None and not is_valid_uid(study):
            return problem(400, "The study in the path is no UID (PS3.5 section 9.1).")
        if not accepts_dicom_json(request.headers.get("accept")):
            return problem(406, f"The response is available as {DICOM_JSON} only.")
        try:
            body = body_type(request.headers.get("content-type"), request.headers.get("content-encoding"))
        except UnsupportedMediaType as error:
            return problem(415, str(error))
        except BadContentType as error:
            return problem(400, str(error))
        if not self._has_room_for(request):
            self._intake.signals.turned_away(Protocol.STOW)
            return EarlyProblem(
                503,
                "The archive cannot store now; nothing of this request was kept. Send it again later.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        began = time.perf_counter()
        signals = self._intake.signals
        traceparent = request.headers.get("traceparent")
        with signals.transfer("stow", Protocol.STOW, SENDER, traceparent=traceparent) as span:
            async with self._intake.transfer(Protocol.STOW, SENDER) as transfer:
                transfer.aborted = True
                try:
                    async with Reception(transfer, study, self._limits) as reception:
                        response = await _receive(request, body.boundary, reception, self._limits)
                    transfer.aborted = response is not None
                finally:
                    signals.transfer_ended(span, transfer)
            answer = response or self._answer(request, reception.outcomes, study)
        signals.stow_completed(transfer, answer.status_code, time.perf_counter() - began)
        return answer

    def _has_room_for(self, request: Request) -> bool:
        watermarks, length = self._intake.watermarks, request.headers.get("content-length", "")
        return watermarks.refusal is None and watermarks.fits(int(length) if length.isdecimal() else 0)

    def _answer(self, request: Request, outcomes: list[Outcome], study: str | None) -> Response:
        root = self._public_url or f"{str(request.base_url).rstrip('/')}{ROOT}"
        return store_response(outcomes, root=root, study=study)


class Reception:
    """The instances of one request: read one after the other, made durable beside that.

    Leaving the block waits for those that are complete, also when the client has gone: they are stored and
    announced. The one that is not complete leaves nothing.
    """

    def __init__(self, transfer: Transfer, study: str | None, limits: StowLimits) -> None:
        self.outcomes: list[Outcome] = []
        """In the order of the body; complete after the block."""
        self._transfer = transfer
        self._study = study
        self._in_hand = limits.in_hand
        self._tasks: set[asyncio.Task[None]] = set()
        self._current: InstanceReceiver | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current is not None:
            await self._current.close()
        if isinstance(error, asyncio.CancelledError):
            for task in self._tasks:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def begin(self, content_type: str | None) -> None:
        """The next instance begins. A part without a type has that of the request (RFC 2387 section 3.1)."""
        kind = parse_media_type(content_type)[0] if content_type else DICOM
        if kind == DICOM:
            self._current = self._transfer.instance(expected_study=self._study)
            return
        outcome = Outcome(RejectReason.NOT_DICOM)
        self._transfer.reject(RejectReason.NOT_DICOM, outcome.status)
        self.outcomes.append(outcome)

    async def write(self, data: bytes) -> None:
        if self._current is not None:
            await self._current.write(data)

    async def end(self) -> None:
        """The instance is complete. Returns when the next one may be read."""
        receiver, self._current = self._current, None
        if receiver is None:
            return
        if len(self._tasks) >= self._in_hand:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.outcomes.append(_UNDECIDED)
        task = asyncio.create_task(self._finish(receiver, len(self.outcomes) - 1))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, receiver: InstanceReceiver, index: int) -> None:
        async with receiver:
            self.outcomes[index] = await receiver.finish()


_UNDECIDED: Final = Outcome(RejectReason.UNKNOWN)


async def _receive(
    request: Request, boundary: str | None, reception: Reception, limits: StowLimits
) -> Response | None:
    """Reads the body to its end. A response only if the request as a whole is at fault."""
    try:
        if boundary is None:
            reception.begin(DICOM)
            async for data in _body(request, limits):
                await reception.write(data)
            await reception.end()
            return None
        await _receive_parts(request, boundary, reception, limits)
    except MalformedMultipart as error:
        return problem(
            400,
            f"The multipart body is malformed: {error}. Instances that were complete before that are kept; "
            "sending them again does no harm.",
        )
    except _TooSlow:
        return problem(
            408,
            "The body came too slowly. Instances that were complete before that are kept; "
            "sending them again does no harm.",
            {"Connection": "close"},
        )
    except ClientDisconnect:
        # Nobody hears this answer; it makes the end of the transfer an aborted one.
        return problem(400, "The body did not come to its end.")
    return None


async def _body(request: Request, limits: StowLimits) -> AsyncIterator[bytes]:
    """The body as it comes. Raises _TooSlow; the time that the taker of the bytes needs does not count."""
    loop, stream = asyncio.get_running_loop(), aiter(request.stream())
    waited, arrived = 0.0, 0
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(limits.idle_seconds - waited):
                data = await anext(stream, None)
        except TimeoutError:
            raise _TooSlow from None
        if data is None:
            return
        waited, arrived = waited + loop.time() - began, arrived + len(data)
        if arrived >= limits.progress:
            waited, arrived = 0.0, 0
        yield data


async def _receive_parts(request: Request, boundary: str, reception: Reception, limits: StowLimits) -> None:
    reader = MultipartReader(boundary, max_parts=limits.parts)
    async for data in _body(request, limits):
        for piece in reader.feed(data):
            if isinstance(piece, PartData):
                await reception.write(piece.data)
            elif isinstance(piece, PartBegin):
                reception.begin(piece.headers.get("content-type"))
            else:
                await reception.end()
    reader.finish()
    if not reader.parts:
        raise MalformedMultipart("there is no part in it")
