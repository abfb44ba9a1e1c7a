"""The questions, and how long their answers take."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import quantiles
from typing import Any

from benchmarks.index import synthetic
from benchmarks.index.load import Archive
from benchmarks.index.synthetic import FIRST_DAY, STUDIES_PER_DAY, Study

from isocenter.common.index.mongo import MongoIndex
from isocenter.common.index.query import All, Exact, Level, Query, Range, Wildcard

PAGE = 50
_PATIENT, _DATE, _MODALITIES = ("00100020",), ("00080020",), ("00080061",)
_ACCESSION, _SOP = ("00080050",), ("00080018",)
_MODALITY_SHARE = ("CT", "MR", "CR")


@dataclass(slots=True)
class Target:
    """An archive, opened."""

    archive: Archive
    index: MongoIndex
    rng: random.Random
    clock: float = 0.0
    times: dict[str, list[float]] = field(default_factory=dict)

    def any_study(self) -> Study:
        return synthetic.study(self.rng.randrange(self.archive.studies))

    def days(self, span: int) -> Range:
        """`span` days that are all within the archive."""
        whole = max(1, self.archive.studies // STUDIES_PER_DAY - span)
        first = FIRST_DAY + timedelta(days=self.rng.randrange(whole))
        last = first + timedelta(days=span - 1)
        return Range(_DATE, first.strftime("%Y%m%d"), last.strftime("%Y%m%d"))


async def _find_by_uid(target: Target) -> None:
    assert await target.index.find_study(target.any_study().uid) is not None


async def _find_by_key(target: Target) -> None:
    assert await target.index.find_study(target.any_study().study_key) is not None


async def _instance(target: Target) -> None:
    one = target.any_study()
    sop = one.sop_uid(target.rng.randrange(one.series), target.rng.randrange(one.instances))
    assert [None async for _ in target.index.instances(one.uid, None, sop)]


async def _search(target: Target, level: Level, *where: Any, study: str | None = None) -> int:
    page = await target.index.search(Query(level, study, where=All(where), limit=PAGE))
    return len(page.matches)


async def _sop_uid(target: Target) -> None:
    one = target.any_study()
    sop = one.sop_uid(target.rng.randrange(one.series), target.rng.randrange(one.instances))
    assert await _search(target, Level.INSTANCE, Exact(_SOP, sop)) == 1


async def _prefix_and_date(target: Target) -> None:
    """A hundred patients by their common prefix, thirty days around a study of one of them."""
    one = target.any_study()
    first, last = one.arrived - timedelta(days=15), one.arrived + timedelta(days=15)
    days = Range(_DATE, first.strftime("%Y%m%d"), last.strftime("%Y%m%d"))
    assert await _search(target, Level.STUDY, Wildcard(_PATIENT, f"{one.patient[:-2]}*"), days)


async def _modality_and_date(target: Target) -> None:
    """A week of one modality: more than a page."""
    modality = target.rng.choice(_MODALITY_SHARE)
    assert await _search(target, Level.STUDY, Exact(_MODALITIES, modality), target.days(7))


async def _accession(target: Target) -> None:
    assert await _search(target, Level.STUDY, Exact(_ACCESSION, target.any_study().accession)) == 1


async def _modality_alone(target: Target) -> None:
    """A third of the archive matches: the newest are shown."""
    modality = target.rng.choice(_MODALITY_SHARE)
    assert await _search(target, Level.STUDY, Exact(_MODALITIES, modality))


async def _newest(target: Target) -> None:
    assert await _search(target, Level.STUDY)


async def _series_of_study(target: Target) -> None:
    one = target.any_study()
    assert await _search(target, Level.SERIES, study=one.uid) == one.series


async def _claim(target: Target) -> None:
    """Ten studies are due and get a lease, which has run out when this is asked again."""
    target.clock += 60
    now = FIRST_DAY + timedelta(days=target.archive.studies / STUDIES_PER_DAY + 1, seconds=target.clock)
    assert len(await target.index.claim_due(now, 30.0, 10)) == 10


async def _claim_idle(target: Target) -> None:
    """Nothing is due: what a settler asks every second."""
    assert not await target.index.claim_due(FIRST_DAY, 30.0, 10)


LOOKUPS: dict[str, Callable[[Target], Awaitable[None]]] = {
    "study by UID": _find_by_uid,
    "study by key": _find_by_key,
    "instance by study and SOP UID": _instance,
    "instance by SOP UID alone (search)": _sop_uid,
}
SEARCHES: dict[str, Callable[[Target], Awaitable[None]]] = {
    "patient id prefix + 30 days": _prefix_and_date,
    "modality + 7 days": _modality_and_date,
    "accession number": _accession,
    "modality alone": _modality_alone,
    "newest studies": _newest,
    "series of a study": _series_of_study,
}
SETTLING: dict[str, Callable[[Target], Awaitable[None]]] = {
    "claim ten due studies": _claim,
    "claim, nothing due": _claim_idle,
}
QUESTIONS = LOOKUPS | SEARCHES | SETTLING


async def ask(targets: list[Target], question: str, count: int) -> None:
    """`count` times of each size, one after another in turns: whatever else the machine does hits all."""
    work = QUESTIONS[question]
    for _ in range(count):
        for target in targets:
            began = time.perf_counter()
            await work(target)
            target.times.setdefault(question, []).append(time.perf_counter() - began)
        targets.reverse()


def milliseconds(times: list[float]) -> dict[str, float]:
    cuts = quantiles(times, n=100)
    return {"p50_ms": round(cuts[49] * 1000, 3), "p99_ms": round(cuts[98] * 1000, 3)}
