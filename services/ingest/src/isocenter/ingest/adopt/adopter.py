"""Takes the files of an archive through the same intake as everything else that arrives."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import (
    IntegrityError,
    InvalidInstance,
    NotFound,
    RejectReason,
    StoreFull,
    StoreUnavailable,
)
from isocenter.common.events.models import Protocol
from isocenter.common.objects.archives import Found, Passed
from isocenter.common.objects.sealing import Unsealed
from isocenter.common.objects.vault import Vault, VaultStaging
from isocenter.ingest.adopt.ledger import Entry, Fate, Ledger, Way
from isocenter.ingest.pipeline import Intake, IntakeLimits
from isocenter.ingest.pull.tasks import each

if TYPE_CHECKING:
    from isocenter.common.objects.adopted import AdoptedStore
    from isocenter.common.objects.archives import Archive
    from isocenter.common.objects.sealing import SealContext
    from isocenter.common.service import Ports
    from isocenter.ingest.pipeline import Transfer

BATCH: Final = 200
"""Files of one transfer; after it they are noted as done."""
AT_ONCE: Final = 4
_PIECE: Final = 1 << 20
_PROBE: Final = 64 << 10
_MAX_NAMED: Final = 1000
_MEDIA_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_LIMITS: Final = IntakeLimits(unannounced=10_000, close_seconds=60.0)
_current: ContextVar[Found] = ContextVar("file")


@dataclass(slots=True)
class Report:
    """What became of an archive's files.

    Attributes:
        files: seen, whatever became of them.
        before: of these, done by an earlier run.
        named: files that were skipped or refused, at most `_MAX_NAMED`.
    """

    files: int = 0
    before: int = 0
    bytes: int = 0
    fates: Counts[Fate] = field(default_factory=Counts)
    removed: int = 0
    reasons: Counts[str] = field(default_factory=Counts)
    named: list[Entry] = field(default_factory=list)

    def count(self, entry: Entry, size: int) -> None:
        self.files += 1
        self.fates[entry.fate] += 1
        if entry.fate in {Fate.TAKEN, Fate.DUPLICATE}:
            self.bytes += size
            return
        self.reasons[entry.reason] += 1
        if len(self.named) < _MAX_NAMED:
            self.named.append(entry)


class ReferringVault(Vault):
    """Stores references to the file in hand, in place of what is written."""

    def __init__(self, vault: Vault, store: AdoptedStore, root: str) -> None:
        super().__init__(vault.store, vault.sealing)
        self._adopted = store
        self._root = root

    def stage(self, context: SealContext) -> VaultStaging:
        return VaultStaging(self._adopted.refer(self._root, _current.get()), Unsealed(), context)


class Adopter:
    """One archive, one way.

    Args:
        ports: of ingest.
        store: where references are made and replaced; with `Way.REFER` it must be one that can.
        watch: called after each file with the report so far.
    """

    def __init__(
        self,
        ports: Ports,
        archive: Archive,
        root: str,
        way: Way,
        ledger: Ledger,
        *,
        store: AdoptedStore,
        watch: Callable[[Report], None] = lambda _: None,
    ) -> None:
        self._intake = Intake(ports, _LIMITS)
        if way is Way.REFER:
            self._intake.vault = ReferringVault(self._intake.vault, store, root)
        store.replacing = way is not Way.REFER
        self._archive = archive
        self._root = root
        self._way = way
        self._ledger = ledger
        self._watch = watch
        self.report = Report()

    async def run(self) -> Report:
        """Every file of the archive. Run again, it goes on where it ended.

        Raises:
            StoreUnavailable, StoreFull: ours or the archive; what was done stays done.
            BusUnavailable: instances are stored, and announced at the next start.
        """
        ports = self._intake.ports
        await ports.bus.start()
        try:
            await self._intake.debts.settle()
            batch: list[Found] = []
            async for found in self._left():
                batch.append(found)
                if len(batch) == BATCH:
                    await self._take(batch)
                    batch = []
            await self._take(batch)
            await self._intake.debts.settle()
        finally:
            await self._intake.debts.stop()
            await ports.bus.stop()
        return self.report

    async def _left(self) -> AsyncIterator[Found]:
        async for found in self._archive.files():
            if isinstance(found, Passed):
                self._count(Entry(found.path, "", self._way, Fate.SKIPPED, found.reason), 0)
                continue
            entry = self._ledger.find(self._root, found.path, found.tag)
            if entry is not None and entry.holds_for(self._way):
                self.report.before += 1
                self._count(entry, found.size)
                await self._remove(found, entry)
            else:
                yield found

    async def _take(self, batch: list[Found]) -> None:
        if not batch:
            return
        entries: dict[str, Entry] = {}
        async with self._intake.transfer(Protocol.ADOPT, "adopt") as transfer:

            async def one(found: Found) -> None:
                _current.set(found)
                entries[found.path] = await self._one(transfer, found)
                self._count(entries[found.path], found.size)

            await each(batch, one, AT_ONCE)
        self._ledger.note(self._root, entries.values())
        for found in batch:
            await self._remove(found, entries[found.path])

    async def _one(self, transfer: Transfer, found: Found) -> Entry:
        try:
            if not await self._is_instance(found):
                return self._entry(found, Fate.SKIPPED, RejectReason.NOT_DICOM.value)
            async with transfer.instance() as receiver:
                for start in range(0, found.size, _PIECE):
                    end = min(start + _PIECE, found.size)
                    piece = await self._archive.read(found, start, end)
                    if len(piece) != end - start:
                        return self._entry(found, Fate.REFUSED, "changed while it was read")
                    await receiver.write(piece)
                outcome = await receiver.finish()
                known = receiver.known
        except NotFound:
            return self._entry(found, Fate.REFUSED, "gone while it was read")
        except IntegrityError:
            return self._entry(found, Fate.REFUSED, "changed while it was read")
        if outcome.reason in {RejectReason.OUT_OF_RESOURCES, RejectReason.UNKNOWN}:
            error = receiver.error
            raise (
                error
                if isinstance(error, StoreFull | StoreUnavailable)
                else StoreUnavailable("the store cannot take it", cause=type(error).__name__)
            )
        if outcome.reason is not None:
            return self._entry(found, Fate.REFUSED, outcome.reason.value)
        return self._entry(found, Fate.DUPLICATE if known else Fate.TAKEN)

    async def _is_instance(self, found: Found) -> bool:
        """By its first bytes: no refusal is worth an event for a checksum file or a DICOMDIR."""
        if found.size == 0:
            return False
        splitter = Part10Splitter()
        try:
            splitter.feed(await self._archive.read(found, 0, min(_PROBE, found.size)))
            if found.size <= _PROBE:
                splitter.finish()
        except InvalidInstance as error:
            return error.reason is not RejectReason.NOT_DICOM
        return splitter.meta is None or splitter.meta.sop_class_uid != _MEDIA_DIRECTORY

    async def _remove(self, found: Found, entry: Entry) -> None:
        """Only what the store holds durably by now."""
        if self._way is Way.MOVE and entry.fate in {Fate.TAKEN, Fate.DUPLICATE}:
            await self._archive.remove(found)
            self.report.removed += 1

    def _entry(self, found: Found, fate: Fate, reason: str = "") -> Entry:
        return Entry(found.path, found.tag, self._way, fate, reason)

    def _count(self, entry: Entry, size: int) -> None:
        self.report.count(entry, size)
        self._watch(self.report)
