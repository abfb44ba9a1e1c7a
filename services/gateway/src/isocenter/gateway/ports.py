"""What a handler gets: the index, the vault, the clock, and the bounds of one request."""

from __future__ import annotations

from dataclasses import dataclass

from isocenter.common.clock import Clock
from isocenter.common.index.ports import IndexReader
from isocenter.common.objects.vault import Vault


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request.

    Attributes:
        default_results, max_results: of one search.
        inflated_bytes: of a deflated object that frames or bulk data are read from.
    """

    default_results: int = 1000
    max_results: int = 5000
    inflated_bytes: int = 2**32


@dataclass(frozen=True, slots=True)
class Context:
    index: IndexReader
    vault: Vault
    clock: Clock
    limits: Limits
