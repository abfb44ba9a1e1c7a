"""The life of a staged entry, as data."""

from __future__ import annotations

from enum import StrEnum

from isocenter.common.errors import Permanent


class State(StrEnum):
    ABSENT = "absent"
    RESERVED = "reserved"
    """Its bytes are charged; nothing is on disk."""
    FETCHING = "fetching"
    DECODING = "decoding"
    WRITING = "writing"
    """Everything is decoded; what is buffered is being written."""
    VERIFIED = "verified"
    """It is what was asked for; the manifest and the last sync are missing."""
    READY = "ready"
    """Immutable from here on."""
    EVICTING = "evicting"
    """Nobody gets it any more; its bytes are charged until they are gone."""
    FAILED = "failed"


class Stimulus(StrEnum):
    RESERVE = "reserve"
    FETCH = "fetch"
    DECODE = "decode"
    WRITE = "write"
    VERIFY = "verify"
    COMMIT = "commit"
    FAIL = "fail"
    EVICT = "evict"
    GONE = "gone"
    """Its files are deleted."""
    FOUND = "found"
    """A restart finds it whole on disk."""


_S, _T = State, Stimulus
_MAKING = (_S.RESERVED, _S.FETCHING, _S.DECODING, _S.WRITING, _S.VERIFIED)

TRANSITIONS: dict[tuple[State, Stimulus], State] = {
    (_S.ABSENT, _T.RESERVE): _S.RESERVED,
    (_S.FAILED, _T.RESERVE): _S.RESERVED,
    (_S.RESERVED, _T.FETCH): _S.FETCHING,
    (_S.FETCHING, _T.DECODE): _S.DECODING,
    (_S.DECODING, _T.DECODE): _S.DECODING,
    (_S.DECODING, _T.WRITE): _S.WRITING,
    (_S.WRITING, _T.VERIFY): _S.VERIFIED,
    (_S.VERIFIED, _T.COMMIT): _S.READY,
    **{(state, _T.FAIL): _S.FAILED for state in _MAKING},
    (_S.READY, _T.EVICT): _S.EVICTING,
    (_S.EVICTING, _T.GONE): _S.ABSENT,
    (_S.FAILED, _T.GONE): _S.ABSENT,
    (_S.ABSENT, _T.FOUND): _S.READY,
}
"""What is not here cannot happen: asking for it is a defect."""

IN_THE_MAKING = frozenset(_MAKING)
CHARGED = frozenset((*_MAKING, _S.READY, _S.EVICTING))


class Impossible(Permanent):
    """A defect of ours: the state table refuses."""

    code = "impossible-transition"


def after(state: State, stimulus: Stimulus) -> State:
    """Raises Impossible."""
    try:
        return TRANSITIONS[state, stimulus]
    except KeyError:
        raise Impossible(f"{stimulus} while {state}") from None
