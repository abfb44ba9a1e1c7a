"""Works off requests for storage commitment: look up, read back, tell. Any replica may do any of it.

All state is in the index database and moves by fenced writes, so a process that dies leaves a lease that runs
out, and another one carries on. A requester may be told twice; it is never told what was not found.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import Transient
from isocenter.common.index.commitments import CommitmentState, Step
from isocenter.ingest.commitment.domain import (
    HTTP_REQUESTER,
    FailureReason,
    Patience,
    look_again_after,
    pause_after,
)
from isocenter.ingest.commitment.reporting import NotReported

if TYPE_CHECKING:
    from collections.abc import Callable

    from isocenter.common.clock import Clock
    from isocenter.common.index.commitments import Commitment
    from isocenter.common.index.ports import Index
    from isocenter.common.peers import Peers
    from isocenter.ingest.commitment.checking import Checker
    from isocenter.ingest.commitment.reporting import Reporter
    from isocenter.ingest.commitment.signals import CommitmentSignals

IN_HAND: Final = 4
"""Requests that one process works on at a time."""
LEASE_SECONDS: Final = 8.0
"""For so long a request waits whose process died with it in hand."""
POLL_SECONDS: Final = 1.0
IDLE_POLL_SECONDS: Final = 5.0
"""Between two looks where nothing was found to do for `IDLE_SECONDS`: a request that comes here wakes the
worker, and one that a dead replica held has waited longer already.
"""
IDLE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 5.0
PURGE_SECONDS: Final = 3600.0


class Worker:
    """Runs in a task of its own while the service does."""

    def __init__(
        self,
        *,
        index: Index,
        clock: Clock,
        checker: Checker,
        reporter: Reporter,
        peers: Callable[[], Peers],
        patience: Patience,
        signals: CommitmentSignals,
    ) -> None:
        self._index = index
        self._clock = clock
        self._checker = checker
        self._reporter = reporter
        self._peers = peers
        self._patience = patience
        self._signals = signals
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._purge_at = 0.0
        self._found_at = float("-inf")
        self._since = clock.now()
        """From when on the index has been there, and with it whoever fills it, as far as is known here."""

    def start(self) -> None:
        self._since = self._clock.now()
        self._loop = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """What is in hand is left as it is: its lease runs out."""
        tasks = [task for task in (self._loop, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop = None

    def nudge(self) -> None:
        """There is something new."""
        self._wake.set()

    # -- the loop -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        paused = False
        while True:
            self._wake.clear()
            pause = IDLE_POLL_SECONDS
            try:
                await self._claim()
                if time.monotonic() - self._found_at < IDLE_SECONDS:
                    pause = POLL_SECONDS
                await self._purge()
                if paused:
                    self._since = self._clock.now()
                paused = False
            except Transient as error:
                if not paused:
                    self._signals.index_unavailable(error)
                paused, pause = True, PAUSE_SECONDS
            except Exception as error:  # noqa: BLE001 - a defect must not end the answers to all requests
                self._signals.failed(error)
                pause = PAUSE_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _claim(self) -> None:
        free = IN_HAND - len(self._tasks)
        if free <= 0:
            return
        claimed = await self._index.claim_commitments(self._clock.now(), LEASE_SECONDS, free)
        if claimed:
            self._found_at = time.monotonic()
        for commitment in claimed:
            task = asyncio.get_running_loop().create_task(self._held(commitment))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._signals.failed(error)

    async def _purge(self) -> None:
        if time.monotonic() < self._purge_at:
            return
        await self._index.purge_commitments(self._clock.now() - timedelta(seconds=self._patience.keep))
        self._purge_at = time.monotonic() + PURGE_SECONDS

    # -- one request ----------------------------------------------------------------------------------------

    async def _held(self, commitment: Commitment) -> None:
        """One step of a request, with its lease prolonged for as long as that takes."""
        work = asyncio.ensure_future(self._step(commitment))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=LEASE_SECONDS / 3)
                if work.done():
                    break
                until = self._clock.now() + timedelta(seconds=LEASE_SECONDS)
                with suppress(Transient):  # while it lasts the lease may run out: then another one carries on
                    if not await self._index.renew_commitment(commitment, until):
                        return
            step = work.result()
            await self._index.advance_commitment(commitment, step)
        except Transient as error:
            # Nothing is known to be written; the lease runs out, and the step is done again.
            self._signals.index_unavailable(error)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    async def _step(self, commitment: Commitment) -> Step:
        if commitment.state is CommitmentState.REPORTING:
            return await self._report(commitment)
        return await self._check(commitment)

    async def _check(self, commitment: Commitment) -> Step:
        began, now = time.perf_counter(), self._clock.now()
        try:
            located = await self._checker.locate(commitment.references)
            # What was asked before a pause may be unknown because of it: nobody could index meanwhile.
            since = max(commitment.requested_at, self._since)
            waits = now < since + timedelta(seconds=self._patience.unknown)
            if waits and any(each.sop_instance_uid not in located for each in commitment.references):
                again = now + look_again_after(commitment.requested_at, now)
                return Step(commitment.state, again, commitment.attempts, {}, None)
            failures = await self._checker.verify(commitment.references, located)
        except Transient as error:
            if not self._over(commitment, now):
                return self._again(commitment, error, now)
            failures = dict.fromkeys(range(len(commitment.references)), int(FailureReason.PROCESSING_FAILURE))
        self._signals.checked(commitment, failures, time.perf_counter() - began)
        asks_itself = commitment.requester == HTTP_REQUESTER
        state = CommitmentState.DONE if asks_itself else CommitmentState.REPORTING
        now = self._clock.now()
        return Step(state, now, commitment.attempts, failures, now)

    async def _report(self, commitment: Commitment) -> Step:
        now = self._clock.now()
        found, fresh = commitment.checked_at, timedelta(seconds=self._patience.fresh)
        if found is None or now - found > fresh:
            return Step(CommitmentState.CHECKING, now, commitment.attempts, {}, None)
        peer = self._peers().get(commitment.requester)
        try:
            if peer is None:
                raise NotReported("no-address")  # noqa: TRY301 - as if the call had found out
            await self._reporter.report(commitment, peer)
        except NotReported as error:
            if not self._over(commitment, now):
                return self._again(commitment, error.reason, now)
            self._signals.given_up(commitment, error.reason, commitment.attempts + 1)
            return self._ended_as(commitment, CommitmentState.GIVEN_UP)
        self._signals.reported(commitment)
        return self._ended_as(commitment, CommitmentState.DONE)

    def _over(self, commitment: Commitment, now: datetime) -> bool:
        return now >= commitment.requested_at + timedelta(seconds=self._patience.give_up)

    def _again(self, commitment: Commitment, cause: str | Exception, now: datetime) -> Step:
        attempts = commitment.attempts + 1
        pause = pause_after(attempts)
        self._signals.delayed(commitment, cause, attempts, pause)
        due = now + timedelta(seconds=pause)
        return Step(commitment.state, due, attempts, commitment.failures, commitment.checked_at)

    def _ended_as(self, commitment: Commitment, state: CommitmentState) -> Step:
        now = self._clock.now()
        return Step(state, now, commitment.attempts + 1, commitment.failures, commitment.checked_at)
