"""Queries as one small syntax tree that each index compiles: QIDO-RS and C-FIND build it, access scope
joins it.

Matching follows PS3.4 C.2.2.2: single value, list of UIDs, wildcard, range, universal (absent from the tree),
and sequence matching by path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"


Path = tuple[str, ...]
"""Tags as eight hex digits, upper case: ("00100010",) or, inside a sequence, ("00400275", "00400009")."""


@dataclass(frozen=True, slots=True)
class Exact:
    """The attribute has this value (one of its values, if it has several)."""

    path: Path
    value: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """UID list matching, and ModalitiesInStudy lists."""

    path: Path
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`*` any run, `?` any one character; person names match without regard to case."""

    path: Path
    pattern: str


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive; None is open. Dates, times and date-times compare in DICOM text order."""

    path: Path
    low: str | None
    high: str | None


@dataclass(frozen=True, slots=True)
class Qualified:
    """Facility-qualified identity: the identifier as this issuer gave it."""

    path: Path
    value: str
    issuer: str


@dataclass(frozen=True, slots=True)
class All:
    """Every condition holds; no condition matches everything."""

    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one condition holds; no condition matches nothing (an empty access scope sees nothing)."""

    conditions: tuple[Condition, ...] = ()


Condition = Exact | OneOf | Wildcard | Range | Qualified | All | AnyOf


@dataclass(frozen=True, slots=True)
class Query:
    """A search at one level.

    Attributes:
        study_instance_uid, series_instance_uid: the hierarchy the resource names; None is relational.
        where: conditions on attributes of this level or any above it.
        limit, offset: paging. Order is stable: newest study first, then by UID at every level.
    """

    level: Level
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    where: Condition = field(default_factory=All)
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """One result: the attributes of its own level and of all levels above, as one DICOM JSON document.

    Computed attributes (NumberOfStudyRelatedInstances, ModalitiesInStudy ...) are included; RetrieveURL is
    the
    gateway's to add.
    """

    study_instance_uid: str
    series_instance_uid: str | None
    sop_instance_uid: str | None
    attributes: dict[str, object]


MOST_COUNTED = 1000
"""Matches after a page that are counted: beyond, counting would cost more than the page."""


@dataclass(frozen=True, slots=True)
class Page:
    """`remaining` counts the matches after this page, up to MOST_COUNTED, for the 299 warning of PS3.18
    section 8.3.4.
    """

    matches: tuple[Match, ...]
    remaining: int
