"""The keys of studies, from one table to the other: unwrapped at the source and wrapped at the target.

Objects move as they are stored, sealed: without these rows nobody could ever open them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from isocenter.cli.errors import CommandError, Exit
from isocenter.common.keys.ports import WrappedKey
from isocenter.common.keys.study import StudyKeys


@dataclass(frozen=True, slots=True)
class KeyTally:
    """Keys on both sides, and how many of the source's the target does not have."""

    source: int
    target: int
    missing: int

    @property
    def equal(self) -> bool:
        """What the source can open, the target can."""
        return self.missing == 0


async def copy(source: StudyKeys, target: StudyKeys, tell: Callable[[int], None]) -> int:
    """Adds the rows that the target lacks, durably. Returns how many it added.

    Raises:
        CommandError: the target has another key for a study: it has objects of its own.
        KeysUnavailable, KeyUnusable, Misconfigured
    """
    copied = done = 0
    async for row in source.table.list():
        kept = await target.table.get(row.study_key)
        if kept is None:
            secret = await source.wrapper.unwrap(row)
            wrapped, wrapper = await target.wrapper.wrap(secret, row.binding)
            kept = await target.table.create(replace(row, wrapped=wrapped, wrapper=wrapper))
            copied += 1
        if not _same(row, kept):
            raise CommandError(
                f"the target has another key for study {row.study_key}: it holds sealed objects of its own",
                hint="choose a target that has no studies",
                code=Exit.REFUSED,
            )
        done += 1
        tell(done)
    return copied


async def compare(source: StudyKeys, target: StudyKeys) -> KeyTally:
    """Every row of the source must be at the target and open there. Raises as `copy` does."""
    count = missing = 0
    async for row in source.table.list():
        count += 1
        kept = await target.table.get(row.study_key)
        if kept is None or not _same(row, kept) or not await _opens_alike(source, row, target, kept):
            missing += 1
    return KeyTally(count, await target.table.count(), missing)


async def _opens_alike(source: StudyKeys, row: WrappedKey, target: StudyKeys, kept: WrappedKey) -> bool:
    return await target.wrapper.unwrap(kept) == await source.wrapper.unwrap(row)


def _same(one: WrappedKey, other: WrappedKey) -> bool:
    return (one.key_id, one.tenant) == (other.key_id, other.tenant)
