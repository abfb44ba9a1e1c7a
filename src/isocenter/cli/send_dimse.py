"""Sends files over C-STORE: as few associations as 128 presentation contexts allow, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.status import code_to_category

from isocenter.cli.files import Candidate
from isocenter.cli.outcome import Outcome, Watcher, problem_text, refused, status_text, stored
from isocenter.cli.scu import MAX_CONTEXTS, Association, AssociationError, Context
from isocenter.common.errors import RejectReason

_Done = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """A DICOM node: address, its AE title and ours."""

    host: str
    port: int
    called: str
    calling: str


def send(candidates: Iterable[Candidate], peer: Peer, watcher: Watcher) -> list[Outcome]:
    """Sends what can be sent and names what cannot.

    When the peer aborts in the middle of an instance, that instance is refused and the rest goes over a new
    association; two aborts in a row without an answer in between end the transfer.

    Raises:
        AssociationError: no association could be opened, or the peer went away for good.
    """
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        watcher.on_outcome(outcome)

    sendable = []
    for candidate in candidates:
        if context_of(candidate) is None or candidate.problem is RejectReason.SOP_CLASS_UNSUPPORTED:
            done(refused(candidate, reason=f"not sent, {problem_text(candidate)}"))
        else:
            sendable.append(candidate)
    for batch in batches(sendable):
        _send_batch(batch, peer, watcher, done)
    return outcomes


def context_of(candidate: Candidate) -> Context | None:
    """SOP Class and the file's transfer syntax, so that nothing is converted. None: not for C-STORE."""
    if candidate.sop is None or candidate.meta is None:
        return None
    return candidate.sop[0], candidate.meta.transfer_syntax_uid


def batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Groups, in order, that need at most 128 presentation contexts each."""
    batch: list[Candidate] = []
    contexts: set[Context] = set()
    for candidate in candidates:
        context = context_of(candidate)
        if context is None:
            continue
        if len(contexts | {context}) > MAX_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        batch.append(candidate)
        contexts.add(context)
    if batch:
        yield batch


def _send_batch(batch: list[Candidate], peer: Peer, watcher: Watcher, done: _Done) -> None:
    remaining = deque(batch)
    while remaining:
        contexts = sorted({context for candidate in remaining if (context := context_of(candidate))})
        association = Association(
            peer.host, peer.port, called=peer.called, calling=peer.calling, contexts=contexts
        )
        answered = 0
        with association:
            while remaining and association.is_open:
                candidate = remaining.popleft()
                try:
                    done(_store(association, candidate, watcher))
                    answered += 1
                except OSError as error:
                    done(refused(candidate, reason=f"cannot be read: {error.strerror or error}"))
                except AssociationError as error:
                    done(refused(candidate, reason=error.text))
                    if not answered:
                        raise


def _store(association: Association, candidate: Candidate, watcher: Watcher) -> Outcome:
    context, sop, meta = context_of(candidate), candidate.sop, candidate.meta
    if context is None or sop is None or meta is None:
        raise ValueError("C-STORE cannot carry this candidate")
    if not association.accepts(context):
        return refused(
            candidate, reason=f"no presentation context: {_named(context[0])} in {_named(context[1])}"
        )
    response = association.store(context, sop[1], candidate.path, meta.header_bytes, watcher.on_bytes)
    text = status_text(response.status, response.comment or problem_text(candidate))
    if response.status == 0:
        return stored(candidate, status=0)
    if code_to_category(response.status) == "Warning":
        return stored(candidate, status=response.status, reason=text)
    return refused(candidate, status=response.status, reason=text)


def _named(uid: str) -> str:
    """`CT Image Storage (1.2.840...)`; a private UID stands for itself."""
    name = UID(uid).name
    return uid if name == uid else f"{name} ({uid})"
