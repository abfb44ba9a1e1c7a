"""One instance on its way in: bytes of any split become an object, or a reason why not."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from opentelemetry import trace

from isocenter.common.dicom.body import BodyScanner
from isocenter.common.dicom.header import HeaderScanner
from isocenter.common.dicom.part10 import Part10Splitter, encode_file_meta
from isocenter.common.errors import InvalidInstance, RejectReason
from isocenter.common.events.models import StoredInstance
from isocenter.common.objects.sealing import SealContext
from isocenter.ingest.domain import Announced, Outcome, reason_of, stored_instance

if TYPE_CHECKING:
    from types import TracebackType

    from isocenter.common.dicom.header import InstanceHeader
    from isocenter.common.objects.ports import PutResult
    from isocenter.common.objects.vault import VaultStaging
    from isocenter.ingest.pipeline import Transfer

Buffer = bytes | bytearray | memoryview

_TOGETHER: Final = 256 << 10
"""Smaller pieces wait for each other: to hand them to a thread costs as much as to seal 100 KiB."""

_WALK_PIECE: Final = 64 << 10
_MANY_ELEMENTS: Final = 2000
"""Walking them takes as long as storing a small image."""


class InstanceReceiver:
    """One instance on its way in. Leaving the block without `finish` leaves nothing behind.

    `write` never raises for what is wrong with the instance or the store: it takes the rest of the bytes
    and `finish` tells. Memory is bounded by the header limit plus what one `write` brings.
    """

    def __init__(self, transfer: Transfer, announced: Announced | None, expected_study: str | None) -> None:
        self._transfer = transfer
        self._intake = transfer.intake
        self._announced = announced
        self._expected_study = expected_study
        self._splitter = Part10Splitter(safe=True) if announced is None else None
        self._scanner: HeaderScanner | None = None
        self._body: BodyScanner | None = None
        self._identity = announced
        self._header: InstanceHeader | None = None
        self._held: list[Buffer] = []
        """What is to be sealed next."""
        self._hashed: list[Buffer] = []
        """What of it belongs to the data set."""
        self._waiting = 0
        """Bytes of it."""
        self._staging: VaultStaging | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        self._error: Exception | None = self._intake.watermarks.refusal
        self._study_key = ""
        self._instance_key = ""
        self._known = False
        self._began = time.perf_counter()
        self._span = self._intake.signals.begin_store(transfer.protocol, transfer.begun)
        transfer.begun += 1
        if announced is not None:
            self._scan(announced.transfer_syntax_uid)
            meta = encode_file_meta(
                sop_class_uid=announced.sop_class_uid,
                sop_instance_uid=announced.sop_instance_uid,
                transfer_syntax_uid=announced.transfer_syntax_uid,
                source_application_entity_title=transfer.sender,
            )
            self._hold(meta, b"")
            self._size = len(meta)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Discards what was not finished. A second call does nothing."""
        self._take_held()
        try:
            await self._discard()
        finally:
            if self._span is not None and self._span.is_recording():
                self._span.end()

    async def _discard(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            await staging.__aexit__(None, None, None)

    @property
    def known(self) -> bool:
        """Whether the store had it already. Of use once `finish` has returned."""
        return self._known

    @property
    def error(self) -> Exception | None:
        """What it was refused for, if it was."""
        return self._error

    async def write(self, data: Buffer) -> None:
        """Takes the next bytes. The buffer may be reused once this returns."""
        if self._error is not None:
            return
        try:
            await self._take(data)
        except Exception as error:  # noqa: BLE001 - becomes the outcome; the sender must hear a status whatever fails
            await self._fail(error)

    async def finish(self, data: Buffer = b"") -> Outcome:
        """Returns when the instance is durable and announced or certain to be, or refused.

        Args:
            data: the last bytes. Those of an instance that comes in one piece need not be copied, nor be
                handed to a thread twice.
        """
        if self._span is None:
            return await self._finish(data)
        with trace.use_span(self._span, end_on_exit=False):
            return await self._finish(data)

    async def _finish(self, data: Buffer) -> Outcome:
        stored: StoredInstance | None = None
        if self._error is None:
            try:
                stored = await self._commit(data)
                await self._announce(stored)
            except Exception as error:  # noqa: BLE001 - becomes the outcome
                await self._fail(error)
        outcome = self._outcome()
        if stored is not None and outcome.stored:
            tell = partial(
                self._intake.signals.stored,
                self._span,
                protocol=self._transfer.protocol,
                study_key=self._study_key,
                known=self._known,
                size=self._size,
                seconds=time.perf_counter() - self._began,
            )
            if self._span is None:
                asyncio.get_running_loop().call_soon(tell)  # the sender need not wait for it
            else:
                tell()
        elif outcome.reason is not None:
            self._intake.signals.store_failed(self._span, outcome.reason, self._error, self._transfer)
            self._transfer.reject(
                outcome.reason, outcome.status, study_instance_uid=outcome.study_instance_uid
            )
        return outcome

    async def _take(self, data: Buffer) -> None:
        body = await self._read(data)
        if self._waiting + len(data) < _TOGETHER or self._header is None:
            kept = bytes(data)
            self._hold(kept, kept if len(body) == len(data) else bytes(body))
            return
        staging = await self._opened()
        held, hashed = self._take_held()
        held.append(data)
        hashed.append(body)

        def pieces() -> list[Buffer]:
            for piece in hashed:
                self._hash.update(piece)
            return held

        await staging.extend(pieces)

    async def _read(self, data: Buffer) -> Buffer:
        """Looks at the next bytes, and returns those of the data set."""
        body: Buffer = data
        if self._splitter is not None and self._scanner is None:
            body = self._splitter.feed(data)
            self._begin_data_set()
        self._size += len(data)
        if self._header is None and self._scanner is not None:
            header = self._scanner.feed(body)
            if header is not None:
                self._place(header)
        await self._walk(body)
        return body

    def _begin_data_set(self) -> None:
        splitter = self._splitter
        if splitter is None or splitter.meta is None or self._scanner is not None:
            return
        meta = splitter.meta
        self._identity = Announced(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid)
        self._scan(meta.transfer_syntax_uid)

    def _scan(self, transfer_syntax_uid: str) -> None:
        self._scanner = HeaderScanner(transfer_syntax_uid, self._intake.limits.header_bytes)
        self._body = BodyScanner(transfer_syntax_uid)

    async def _walk(self, data: Buffer) -> None:
        """Holds the data set to its lengths. One that is deflated may cost far more than its size."""
        if self._body is None or not data:
            return
        if self._body.deflated:
            # Shielded: the caller may reuse the buffer when this returns.
            walking = asyncio.get_running_loop().run_in_executor(None, self._body.feed, data)
            try:
                await asyncio.shield(walking)
            except asyncio.CancelledError:
                await asyncio.wait({walking})
                raise
        else:
            view = memoryview(data)
            for start in range(0, len(view), _WALK_PIECE):
                before = self._body.elements
                self._body.feed(view[start : start + _WALK_PIECE])
                if self._body.elements - before > _MANY_ELEMENTS:
                    await asyncio.sleep(0)  # nothing but elements: the others have their turn

    def _place(self, header: InstanceHeader) -> None:
        """What the object is sealed to is known only now."""
        self._header = header
        identity = self._identity
        if identity is None:
            raise InvalidInstance(RejectReason.NOT_DICOM)
        # File meta information without the two UIDs is tolerated: the data set has them.
        for claimed, found in (
            (identity.sop_class_uid, header.sop_class_uid),
            (identity.sop_instance_uid, header.sop_instance_uid),
        ):
            if claimed and claimed != found:
                raise InvalidInstance(RejectReason.SOP_MISMATCH)
        if self._expected_study is not None and self._expected_study != header.study_instance_uid:
            raise InvalidInstance(RejectReason.STUDY_MISMATCH)
        self._study_key = self._transfer.study_key(header.study_instance_uid)
        self._instance_key = self._intake.ports.keys.instance_key(header.sop_instance_uid)

    async def _opened(self) -> VaultStaging:
        if self._staging is None:
            context = SealContext(study_key=self._study_key, object_id=self._instance_key)
            staging = self._intake.vault.stage(context)
            await staging.__aenter__()
            self._staging = staging
        return self._staging

    async def _commit(self, data: Buffer) -> StoredInstance:
        body = await self._read(data)
        rest = b""
        if self._splitter is not None and self._splitter.meta is None:
            rest = self._splitter.finish()
            self._begin_data_set()
            await self._walk(rest)
        if self._scanner is None:
            raise InvalidInstance(RejectReason.NOT_DICOM)
        if self._header is None:
            self._place(self._scanner.finish())
        if self._body is not None:
            self._body.finish()
        header, identity = self._header, self._identity
        if header is None or identity is None:
            raise InvalidInstance(RejectReason.NOT_DICOM)
        staging = await self._opened()
        held, hashed = self._take_held()
        held.append(data)
        hashed += (body, rest)
        keys, received_at = self._intake.ports.keys, self._intake.ports.clock.now().isoformat()
        series_key = self._transfer.series_key(header.series_instance_uid)

        def last() -> tuple[list[Buffer], str, dict[str, str]]:
            for piece in hashed:
                self._hash.update(piece)
            digest = self._hash.hexdigest()
            key = keys.object_key(header.sop_instance_uid, identity.transfer_syntax_uid, digest)
            facts = {
                "study_key": self._study_key,
                "series_key": series_key,
                "instance_key": self._instance_key,
                "content_digest": digest,
                "transfer_syntax_uid": identity.transfer_syntax_uid,
                "sop_class_uid": header.sop_class_uid,
                "received_at": received_at,
                "sender": self._transfer.sender,
                "protocol": self._transfer.protocol.value,
                "transfer_id": self._transfer.id,
            }
            return held, key, facts

        result = await self._committed(asyncio.ensure_future(staging.conclude(last, pending=True)))
        # A re-sent instance is the object that is there already: the fact is told again as it was told first.
        kept = result.info
        self._known = not result.created
        if result.healed:
            self._intake.signals.healed(kept.key)
        return stored_instance(kept, self._intake.ports.sealing)

    async def _committed(self, committing: asyncio.Future[PutResult]) -> PutResult:
        """The outcome of a commit. It cannot be called back: if nobody waits for it any more (the sender is
        gone, the service stops), the object is there all the same, and owed to the bus.
        """
        try:
            return await asyncio.shield(committing)
        except asyncio.CancelledError:
            while not committing.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({committing})
            if not committing.cancelled() and committing.exception() is None:
                stored = stored_instance(committing.result().info, self._intake.ports.sealing)
                self._intake.debts.owe(self._study_key, self._transfer, stored)
            raise

    async def _announce(self, stored: StoredInstance) -> None:
        try:
            await self._transfer.announce(self._study_key, stored, pending=not self._known)
        except BaseException:
            # The object is there, and the sender hears that it is not: it is announced when the bus is back.
            self._intake.debts.owe(self._study_key, self._transfer, stored)
            raise

    async def _fail(self, error: Exception) -> None:
        self._error = error
        if isinstance(error, InvalidInstance):
            # It says all there is to say, and its frames would keep the sender's bytes.
            error.__traceback__ = None
        self._intake.watermarks.met(error)
        self._take_held()
        try:
            await self._discard()
        except Exception as second:  # noqa: BLE001 - the first error is the one that tells
            self._intake.signals.discard_failed(self._transfer, second)

    def _hold(self, data: bytes, body: bytes) -> None:
        self._held.append(data)
        self._hashed.append(body)
        self._waiting += len(data)

    def _take_held(self) -> tuple[list[Buffer], list[Buffer]]:
        """What waited, and what of it belongs to the data set."""
        held, hashed = self._held, self._hashed
        self._held, self._hashed, self._waiting = [], [], 0
        return held, hashed

    def _outcome(self) -> Outcome:
        header, identity = self._header, self._identity
        return Outcome(
            reason=None if self._error is None else reason_of(self._error),
            sop_class_uid=header.sop_class_uid if header else identity.sop_class_uid if identity else "",
            sop_instance_uid=header.sop_instance_uid
            if header
            else identity.sop_instance_uid
            if identity
            else "",
            study_instance_uid=header.study_instance_uid if header else "",
            series_instance_uid=header.series_instance_uid if header else "",
        )
