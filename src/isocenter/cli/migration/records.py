"""Compares two indexes by what they dump, study by study, whatever their size. Nothing of a dump is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from isocenter.cli.migration.iterating import closing
from isocenter.common.index.ports import IndexReader
from isocenter.common.keys import SiteKeys

NAMED = 20
"""Studies that are named; all are counted."""


@dataclass(slots=True)
class DumpTally:
    """One index in figures. The digest is taken over every line of its dump."""

    studies: int = 0
    lines: int = 0
    digest: str = ""


@dataclass(slots=True)
class RecordComparison:
    """Two indexes beside each other.

    Attributes:
        differing: studies that are not the same on both sides, those that one side lacks included.
        named: study keys of some of them.
    """

    source: DumpTally = field(default_factory=DumpTally)
    target: DumpTally = field(default_factory=DumpTally)
    differing: int = 0
    named: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differing


@dataclass(frozen=True, slots=True)
class _Study:
    uid: str
    digest: bytes


async def compare(
    source: IndexReader, target: IndexReader, keys: SiteKeys, told: Callable[[int], None]
) -> RecordComparison:
    """Raises IndexUnavailable."""
    result = RecordComparison()
    async with (
        closing(_studies(source, result.source)) as ours,
        closing(_studies(target, result.target)) as theirs,
    ):
        one, other = await anext(ours, None), await anext(theirs, None)
        while one is not None or other is not None:
            told(result.source.studies)
            if one is not None and other is not None and one.uid == other.uid:
                if one.digest != other.digest:
                    _differs(result, keys, one)
                one, other = await anext(ours, None), await anext(theirs, None)
            elif other is None or (one is not None and one.uid < other.uid):
                if one is not None:
                    _differs(result, keys, one)
                one = await anext(ours, None)
            else:
                _differs(result, keys, other)
                other = await anext(theirs, None)
    return result


async def equal(source: IndexReader, target: IndexReader) -> bool:
    """Stops at the first difference."""
    async with (
        closing(_studies(source, DumpTally())) as ours,
        closing(_studies(target, DumpTally())) as theirs,
    ):
        while True:
            one, other = await anext(ours, None), await anext(theirs, None)
            if one != other:
                return False
            if one is None:
                return True


async def _studies(index: IndexReader, tally: DumpTally) -> AsyncIterator[_Study]:
    """A dump goes study by study in the order of their UIDs; every line names its study."""
    whole, part = hashlib.sha256(), hashlib.sha256()
    uid: str | None = None
    async with closing(index.dump()) as lines:
        async for line in lines:
            data = line.encode() + b"\n"
            whole.update(data)
            tally.lines += 1
            of = json.loads(line)["study"]
            if of != uid:
                if uid is not None:
                    tally.studies += 1
                    yield _Study(uid, part.digest())
                uid, part = of, hashlib.sha256()
            part.update(data)
    tally.digest = whole.hexdigest()
    if uid is not None:
        tally.studies += 1
        yield _Study(uid, part.digest())


def _differs(result: RecordComparison, keys: SiteKeys, study: _Study) -> None:
    result.differing += 1
    if len(result.named) < NAMED:
        result.named.append(keys.study_key(study.uid))
