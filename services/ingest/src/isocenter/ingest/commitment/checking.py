"""Whether instances are safe: each object is read to its end, its data set hashed against what was recorded.

The index only says where to look. What it says of an object that is gone or changed counts for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from itertools import islice
from typing import TYPE_CHECKING, Final

from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import Misconfigured, NotFound, Permanent, StoreUnavailable, Transient
from isocenter.common.objects.sealing import SealContext
from isocenter.ingest.commitment.domain import FailureReason, candidates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from isocenter.common.index.commitments import Located, Reference
    from isocenter.common.index.ports import Index
    from isocenter.common.objects.vault import Vault

LOOK_UP: Final = 500
"""SOP Instance UIDs asked for at once."""
READS: Final = 4
"""Objects read at the same time."""
PAUSES: Final = (0.5, 2.0)
"""Seconds between the tries to read one object: those that were read before it need not be read again."""
_HASH_OFF_LOOP: Final = 128 << 10


class Checker:
    """Looks instances up and reads them back."""

    def __init__(self, index: Index, vault: Vault) -> None:
        self._index = index
        self._vault = vault

    async def locate(self, references: Sequence[Reference]) -> dict[str, list[Located]]:
        """Where the index has them, by SOP Instance UID. Raises IndexUnavailable."""
        located: dict[str, list[Located]] = {}
        for some in _in_pieces(sorted({each.sop_instance_uid for each in references}), LOOK_UP):
            for found in await self._index.locate(some):
                located.setdefault(found.sop_instance_uid, []).append(found)
        return located

    async def verify(
        self, references: Sequence[Reference], located: Mapping[str, Sequence[Located]]
    ) -> dict[int, int]:
        """Position -> Failure Reason of each reference that is not committed.

        Raises:
            Transient: store or keys cannot be reached; nothing is known.
        """
        judged = [candidates(each, located.get(each.sop_instance_uid, ())) for each in references]
        objects = {each.object_key: each for found in judged if isinstance(found, list) for each in found}
        faults = await self._read_all(objects.values())
        failures: dict[int, int] = {}
        for position, found in enumerate(judged):
            if isinstance(found, FailureReason):
                failures[position] = found
                continue
            wrong = [faults[each.object_key] for each in found if each.object_key in faults]
            if wrong:
                failures[position] = max(wrong)
        return failures

    async def _read_all(self, objects: Iterable[Located]) -> dict[str, FailureReason]:
        faults: dict[str, FailureReason] = {}
        waiting = iter(objects)

        async def read() -> None:
            for each in waiting:
                fault = await self._fault(each)
                if fault is not None:
                    faults[each.object_key] = fault

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(READS):
                    group.create_task(read())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return faults

    async def _fault(self, located: Located) -> FailureReason | None:
        """What is wrong with an object, if anything is. Raises Transient: that cannot be known now."""
        for pause in PAUSES:
            try:
                return await self._read(located)
            except Transient:
                await asyncio.sleep(pause)
        return await self._read(located)

    async def _read(self, located: Located) -> FailureReason | None:
        context = SealContext(study_key=located.study_key, object_id=located.instance_key)
        try:
            reader = await self._vault.reader(located.object_key, context)
            recorded = located.content_digest or reader.info.metadata.get("content_digest", "")
            splitter, digest = Part10Splitter(), hashlib.sha256()
            async for piece in reader.stream():
                body = splitter.feed(piece)
                if len(body) < _HASH_OFF_LOOP:
                    digest.update(body)
                else:
                    await asyncio.to_thread(digest.update, body)
            digest.update(splitter.finish())
        except NotFound:
            return FailureReason.NO_SUCH_OBJECT_INSTANCE
        except Misconfigured as error:
            # Says nothing of the object: another key file, refused credentials. Somebody will mend it.
            raise StoreUnavailable("objects cannot be read back", cause=type(error).__name__) from error
        except Permanent:
            # Does not open, does not begin like a Part 10 file, is shorter than it was: whatever it is, it
            # is not what was stored.
            return FailureReason.PROCESSING_FAILURE
        return None if digest.hexdigest() == recorded else FailureReason.PROCESSING_FAILURE


def _in_pieces(values: Sequence[str], size: int) -> Iterator[list[str]]:
    rest = iter(values)
    while piece := list(islice(rest, size)):
        yield piece
