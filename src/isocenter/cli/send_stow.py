"""Sends files over STOW-RS (PS3.18 section 10.5): whole Part 10 files, streamed, a few dozen per request."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx

from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.files import Candidate
from isocenter.cli.outcome import Outcome, Watcher, problem_text, refused, status_text, stored

MAX_FILES = 64
MAX_BYTES = 64 << 20
_PIECE = 256 << 10
_TIMEOUT = httpx.Timeout(300.0, connect=10.0)

_REFERENCED_SOP_SEQUENCE, _FAILED_SOP_SEQUENCE, _OTHER_FAILURES = "00081199", "00081198", "0008119A"
_SOP_INSTANCE_UID, _FAILURE_REASON, _WARNING_REASON = "00081155", "00081197", "00081196"


def send(candidates: Iterable[Candidate], base_url: str, watcher: Watcher) -> list[Outcome]:
    """Posts every file, also those this sender cannot read: the receiver judges.

    Raises:
        CommandError: no answer from the receiver.
    """
    outcomes: list[Outcome] = []
    with httpx.Client(timeout=_TIMEOUT) as client:
        for batch in batches(candidates):
            for outcome in _post(client, base_url, batch, watcher.on_bytes):
                outcomes.append(outcome)
                watcher.on_outcome(outcome)
    return outcomes


def batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Requests in order. A SOP Instance UID occurs once per request, and a file without one goes alone:
    the response names instances by that UID.
    """
    batch: list[Candidate] = []
    uids: set[str] = set()
    size = 0
    for candidate in candidates:
        uid = candidate.header.sop_instance_uid if candidate.header else ""
        full = len(batch) >= MAX_FILES or size + candidate.size > MAX_BYTES
        if batch and (full or not uid or uid in uids):
            yield batch
            batch, uids, size = [], set(), 0
        batch.append(candidate)
        uids.add(uid)
        size += candidate.size
        if not uid:
            yield batch
            batch, uids, size = [], set(), 0
    if batch:
        yield batch


def _post(
    client: httpx.Client, base_url: str, batch: list[Candidate], on_bytes: Callable[[int], None]
) -> list[Outcome]:
    boundary = f"isocenter-{secrets.token_hex(16)}"
    try:
        response = client.post(
            f"{base_url}/studies",
            content=_body(batch, boundary, on_bytes),
            headers={
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Accept": "application/dicom+json",
            },
        )
    except httpx.HTTPError as error:
        raise CommandError(
            f"no DICOMweb service answers at {base_url} ({error})",
            hint="isocenter up, or name another with --to http://HOST:PORT/dicom-web",
            code=Exit.UNREACHABLE,
        ) from error
    return _judge(batch, response)


def _body(batch: list[Candidate], boundary: str, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    for candidate in batch:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with candidate.path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
                on_bytes(len(piece))
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _judge(batch: list[Candidate], response: httpx.Response) -> list[Outcome]:
    document = _json(response)
    if not isinstance(document, dict) or not {
        _REFERENCED_SOP_SEQUENCE,
        _FAILED_SOP_SEQUENCE,
        _OTHER_FAILURES,
    } & set(document):
        reason = _problem(document) or response.reason_phrase
        return [_refused(c, None, f"HTTP {response.status_code} {reason}") for c in batch]
    kept = {_uid(item): item for item in _items(document, _REFERENCED_SOP_SEQUENCE)}
    failed = {_uid(item): item for item in _items(document, _FAILED_SOP_SEQUENCE)}
    others = _items(document, _OTHER_FAILURES)
    outcomes = []
    for candidate in batch:
        uid = candidate.header.sop_instance_uid if candidate.header else ""
        if uid and uid in kept:
            warning = _number(kept[uid], _WARNING_REASON)
            outcomes.append(stored(candidate, status=warning or 0, reason=_words(warning)))
            continue
        item = failed.get(uid) or (others[0] if others else next(iter(failed.values()), {}))
        status = _number(item, _FAILURE_REASON)
        outcomes.append(_refused(candidate, status, _words(status) or "the response does not name it"))
    return outcomes


def _refused(candidate: Candidate, status: int | None, reason: str) -> Outcome:
    seen = problem_text(candidate)
    return refused(candidate, status=status, reason=f"{reason} ({seen})" if seen else reason)


def _words(status: int | None) -> str:
    return status_text(status) if status else ""


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _problem(document: Any) -> str:
    """Title and detail of an RFC 9457 problem document."""
    if not isinstance(document, dict):
        return ""
    return ": ".join(str(document[name]) for name in ("title", "detail") if document.get(name))


def _items(document: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    return list(document.get(tag, {}).get("Value", []))


def _uid(item: dict[str, Any]) -> str:
    return str(next(iter(item.get(_SOP_INSTANCE_UID, {}).get("Value", [])), ""))


def _number(item: dict[str, Any], tag: str) -> int | None:
    value = next(iter(item.get(tag, {}).get("Value", [])), None)
    return int(value) if isinstance(value, int | float | str) else None
