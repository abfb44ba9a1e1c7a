"""The write-ahead journal of the local store: one sync for everything that waits.

A small object is durable once its record is in the journal: a few files that are written over and over, so
that a sync moves data and nothing of the file system's own. The object's file is written and linked without a
sync. Of a larger one, whose file was synced, the record says under which name, and its link to the object's
name needs no sync. A thread makes the files of a whole segment durable together, later, and the segment is
used again. What a crash left behind is put in place when the directory is opened next (`replay`).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isocenter.common.objects import files
from isocenter.common.objects.records import (
    HEAD_BYTES,
    PAGE,
    USE_BYTES,
    Kind,
    Record,
    numbers_body,
    pages,
    place_body,
    record_head,
    segment_page,
)

Buffer = bytes | bytearray | memoryview

SEGMENT_BYTES: Final = 64 << 20
SEGMENTS: Final = 3
SETTLE_SECONDS: Final = 1.0
"""A record waits about so long until the file it stands for is made durable. Bounds the work of a replay."""
_RETRY_SECONDS: Final = 1.0
_PLACING_SECONDS: Final = 0.002
"""A thread links a file some microseconds after its record is durable."""
_MAX_BATCH_BYTES: Final = 8 << 20
_AHEAD_BYTES: Final = 4 << 20
"""A segment grows by so much: a sync that makes a file longer costs ten of those that do not."""
_ZEROS: Final = bytes(1 << 20)
_ROOMY: Final = 16
"""A file system with so many times a segment free can spare what used segments hold."""
SUFFIX: Final = ".journal"


class NoRoom(Exception):
    """The journal cannot take the record now: whoever brings it syncs its file itself."""


@dataclass(slots=True)
class Entry:
    """An object in the journal."""

    key: str
    number: int
    pending: bool
    segment: Segment
    position: int
    size: int
    staged: Path | None = None
    """Another name of its file, under which that is durable already."""
    placed: bool = False
    """Its file is linked to its name, or never will be. Before, the record is the only copy."""
    time: int = 0
    over: bool = False
    """Void, or a later record has its key: its bytes must not come to its name again."""
    renewed: bool = False
    """Its file was written once more, and synced itself."""

    def body(self) -> bytes:
        """Raises OSError."""
        return Record(self.segment.descriptor, self.position, self.number, 0, self.size, Kind.OBJECT).body()


@dataclass(slots=True)
class Segment:
    """A file that is written from its beginning, again and again."""

    path: Path
    descriptor: int
    use: bytes
    end: int = PAGE
    length: int = PAGE
    """Of the file, whose bytes behind `end` are zeros or records of earlier uses."""
    entries: list[Entry] = field(default_factory=list)
    suspect: bool = False
    """The disk may have lost files of these entries, and will not say so again."""


@dataclass(slots=True)
class _Waiting:
    """A record on its way."""

    kind: Kind
    time: int
    key: str
    body: Sequence[Buffer]
    size: int
    staged: Path | None = None
    doubts: int | None = None
    entry: Entry | None = None
    error: BaseException | None = None


class Journal:
    """The journal of one process. Blocking; any thread may call.

    Args:
        directory: where the segments are; durable itself.
        name: begins the names of the segments, and tells whose they are.
        settle: makes the files of a segment's entries durable. Raises OSError: some of them are not.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        settle: Callable[[Segment], None],
        *,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._directory = directory
        self._name = name
        self._settle = settle
        self._segment_bytes = segment_bytes
        self._state = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._writing = False
        self._number = 0
        self._made = 0
        self._active: Segment | None = None
        self._free: list[Segment] = []
        self._full: deque[Segment] = deque()
        self._held: dict[str, Entry] = {}
        self._keeper: threading.Thread | None = None
        self._keep = threading.Event()
        self._closing = False
        self.doubts = 0
        """How often the disk said that it lost something."""
        self.fault: str | None = None
        """Why files could not be made durable at the last try; their records are kept until they are."""

    # -- records --------------------------------------------------------------------------------------------

    def append(self, key: str, body: Sequence[Buffer], *, pending: bool, doubts: int) -> Entry:
        """An object: `body` is its file. Returns when the record is durable. Calls that wait at the same time
        share one sync.

        Args:
            key: of the object.
            body: its file.
            pending: something must follow.
            doubts: how many there were before the file was written.

        Raises:
            NoRoom: nothing was written that counts.
        """
        return self._append(key, body, Kind.PENDING if pending else Kind.OBJECT, doubts=doubts)

    def append_named(self, key: str, staged: Path, *, pending: bool) -> Entry:
        """The same for an object whose file is durable as `staged`, which stays until it is settled."""
        body = place_body(key, f"{staged.parent.name}/{staged.name}")
        return self._append(key, [body], Kind.NAMED_PENDING if pending else Kind.NAMED, staged)

    def _append(
        self,
        key: str,
        body: Sequence[Buffer],
        kind: Kind,
        staged: Path | None = None,
        doubts: int | None = None,
    ) -> Entry:
        size = sum(map(len, body))
        waiting = _Waiting(kind, time.monotonic_ns(), key, body, size, staged, doubts)
        if pages(size) > self._segment_bytes - PAGE:
            raise NoRoom
        with self._state:
            if self._closing:
                raise NoRoom
            self._queue.append(waiting)
        while batch := self._lead(waiting):
            self._write(batch)
        if waiting.entry is None:
            raise NoRoom from waiting.error
        return waiting.entry

    def confirm(self, keys: Iterable[str]) -> None:
        """What had to follow these has followed. Survives the process, and mostly the machine."""
        with self._state:
            entries = [entry for key in keys if (entry := self._held.get(key)) is not None and entry.pending]
            for entry in entries:
                entry.pending = False
        self._note(Kind.CONFIRMED, entries)

    def void(self, entry: Entry) -> None:
        """The object could not be put in place, and its sender hears so."""
        with self._state:
            entry.pending = False
            entry.placed = True
            entry.over = True
            self._held.pop(entry.key, None)
        self._note(Kind.VOID, [entry])

    def holds(self, key: str) -> bool:
        """The object is durable here, whatever has become of its file."""
        return key in self._held

    def hand_over(self, entry: Entry, keep: Callable[[str], None]) -> None:
        """Calls `keep` with the key if the entry is still pending, which it then is no more here."""
        with self._state:
            if entry.pending:
                keep(entry.key)
                entry.pending = False

    def doubt(self) -> None:
        """The disk lost something of some file, and says so once: whatever was written until now and is not
        settled may be lost. Only the records are to be trusted.
        """
        with self._state:
            self.doubts += 1
            for segment in [*self._full, *([self._active] if self._active else [])]:
                segment.suspect = True

    def close(self) -> bool:
        """Makes every file durable and removes the segments. False if that failed: they stay for a replay."""
        with self._state:
            self._closing = True
            while self._writing:
                self._state.wait()
        self._keep.set()
        if self._keeper is not None:
            self._keeper.join()
        whole = not self._full and self._empty()
        for segment in [*self._free, *([self._active] if whole and self._active else [])]:
            self._drop(segment)
        if not whole:
            for segment in [*self._full, *([self._active] if self._active else [])]:
                os.close(segment.descriptor)
        return whole

    # -- writing --------------------------------------------------------------------------------------------

    def _lead(self, waiting: _Waiting) -> list[_Waiting]:
        """Returns when the record is written, with nothing; or, when nobody writes, with what to write."""
        with self._state:
            while waiting.entry is None and waiting.error is None:
                if not self._writing:
                    self._writing = True
                    return self._gather()
                self._state.wait()
        return []

    def _gather(self) -> list[_Waiting]:
        limit = min(_MAX_BATCH_BYTES, self._segment_bytes - PAGE)
        batch = [self._queue.popleft()]
        size = pages(batch[0].size)
        while self._queue and (size := size + pages(self._queue[0].size)) <= limit:
            batch.append(self._queue.popleft())
        return batch

    def _write(self, batch: list[_Waiting]) -> None:
        """One sync for the batch. What goes wrong is told to those who wait."""
        error: BaseException | None = None
        segment: Segment | None = None
        start = number = 0
        try:
            size = sum(pages(waiting.size) for waiting in batch)
            segment = self._with_room(size)
            with self._state:
                start, number = segment.end, self._number
                segment.end += size
                self._number += len(batch)
            self._write_records(segment, _buffers(segment.use, batch, number), start, start + size)
        except BaseException as caught:  # noqa: BLE001 - raised below: before, those who wait must hear of it
            error = caught
        with self._state:
            self._writing = False
            if error is None and segment is not None:
                self._enter(segment, start, batch, number)
            else:
                for waiting in batch:
                    waiting.error = error
                if segment is not None:
                    # What a failed sync left of its pages nobody knows: this use of the segment is over.
                    self._retire(segment)
            self._state.notify_all()
        if segment is not None and start == PAGE:
            self._start_keeper()
        if error is not None and not isinstance(error, OSError | NoRoom):
            raise error

    def _write_records(self, segment: Segment, buffers: list[Buffer], start: int, end: int) -> None:
        """Where the file must grow for them, it grows by more than they need. Raises OSError."""
        if end > segment.length:
            length = min(-(-end // _AHEAD_BYTES) * _AHEAD_BYTES, self._segment_bytes)
            ahead = length - end
            zeros = [
                memoryview(_ZEROS)[: min(ahead - at, len(_ZEROS))] for at in range(0, ahead, len(_ZEROS))
            ]
            try:
                files.write_durably(segment.descriptor, [*buffers, *zeros], start)
            except OSError as error:
                if error.errno not in files.FULL:
                    raise
                length = end  # no room for that much
                files.write_durably(segment.descriptor, buffers, start)
            segment.length = length
        else:
            files.write_durably(segment.descriptor, buffers, start)

    def _enter(self, segment: Segment, position: int, batch: list[_Waiting], first: int) -> None:
        for number, waiting in enumerate(batch, start=first):
            pending = waiting.kind in {Kind.PENDING, Kind.NAMED_PENDING}
            entry = Entry(
                waiting.key,
                number,
                pending,
                segment,
                position,
                waiting.size,
                waiting.staged,
                time=waiting.time,
            )
            segment.entries.append(entry)
            # Written before the disk failed, and recorded behind it.
            segment.suspect |= waiting.doubts not in {None, self.doubts}
            if (before := self._held.get(waiting.key)) is not None:
                before.over = True
            self._held[waiting.key] = entry
            waiting.entry = entry
            position += pages(waiting.size)

    def _with_room(self, size: int) -> Segment:
        """The segment to write to. Only the thread that writes calls this. Raises NoRoom, OSError."""
        with self._state:
            active = self._active
            if active is not None and active.end + size > self._segment_bytes:
                self._retire(active)
            if self._active is None and self._free:
                self._active = self._free.pop()
            if self._active is not None:
                return self._active
            if len(self._full) >= SEGMENTS:
                raise NoRoom
        created = self._create()
        with self._state:
            self._active = created
        return created

    def _retire(self, segment: Segment) -> None:
        if self._active is segment:
            self._active = None
            self._full.append(segment)
            self._keep.set()

    def _create(self) -> Segment:
        self._made += 1
        path = self._directory / f"{self._name}.{self._made}{SUFFIX}"
        use = secrets.token_bytes(USE_BYTES)
        descriptor = files.create(path)
        try:
            files.write_durably(descriptor, [segment_page(use)], 0)
            files.sync_directory(self._directory)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return Segment(path, descriptor, use)

    def _note(self, kind: Kind, entries: list[Entry]) -> None:
        """Writes a record about others, not synced. It is of use only as long as they are there, and the
        segment in use now is there longer than any of an earlier number.
        """
        if not entries:
            return
        body = numbers_body([entry.number for entry in entries])
        size = pages(len(body))
        with self._state:
            active = self._active
            if active is None or active.end + size > self._segment_bytes:
                return  # told once more after a crash: harmless
            if self._writing and active.end + size > active.length:
                return  # likewise: the zeros of a batch that makes the file longer would come over it
            start = active.end
            active.end += size
            number = self._number
            self._number += 1
            head = record_head(active.use, number, time.monotonic_ns(), len(body), kind)
            with suppress(OSError):
                files.write_at(active.descriptor, [head, body], start)
        if start == PAGE:
            self._keep.set()

    # -- the thread that makes files durable ----------------------------------------------------------------

    def _start_keeper(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._run, name="objects-journal", daemon=True)
            self._keeper.start()
        self._keep.set()

    def _run(self) -> None:
        while True:
            self._keep.wait()
            self._keep.clear()
            deadline = time.monotonic() + SETTLE_SECONDS
            while not self._closing and not self._full and (left := deadline - time.monotonic()) > 0:
                self._keep.wait(left)
                self._keep.clear()
            with self._state:
                while self._writing:
                    self._state.wait()
                if not self._full and self._active is not None and self._active.end > PAGE:
                    self._retire(self._active)
            settled = self._settle_all()
            if self._closing and (not settled or (not self._full and self._empty())):
                return
            if not settled:
                self._keep.wait(_RETRY_SECONDS)
                self._keep.set()
            elif self._full or not self._empty():
                self._keep.set()

    def _empty(self) -> bool:
        active = self._active
        return active is None or active.end == PAGE

    def _settle_all(self) -> bool:
        while self._full:
            segment = self._full[0]
            while not all(entry.placed for entry in segment.entries):
                time.sleep(_PLACING_SECONDS)
            try:
                self._settle(segment)
            except (OSError, MemoryError) as error:
                self.fault = getattr(error, "strerror", None) or type(error).__name__
                return False
            self.fault = None
            with self._state:
                self._full.popleft()
                for entry in segment.entries:
                    if self._held.get(entry.key) is entry:
                        del self._held[entry.key]
            self._recycle(segment)
        return True

    def _recycle(self, segment: Segment) -> None:
        segment.entries = []
        segment.suspect = False
        segment.use = secrets.token_bytes(USE_BYTES)
        segment.end = PAGE
        try:
            files.write_durably(segment.descriptor, [segment_page(segment.use)], 0)
            room = os.fstatvfs(segment.descriptor)
            if room.f_bavail * room.f_frsize < _ROOMY * self._segment_bytes:
                os.ftruncate(segment.descriptor, PAGE)
                segment.length = PAGE
        except (OSError, MemoryError):
            self._drop(segment)
        else:
            with self._state:
                self._free.append(segment)

    @staticmethod
    def _drop(segment: Segment) -> None:
        os.close(segment.descriptor)
        with suppress(OSError):
            segment.path.unlink(missing_ok=True)


def _buffers(use: bytes, batch: list[_Waiting], first: int) -> list[Buffer]:
    buffers: list[Buffer] = []
    for number, waiting in enumerate(batch, start=first):
        buffers.append(record_head(use, number, waiting.time, waiting.size, waiting.kind))
        buffers.extend(waiting.body)
        if padding := pages(waiting.size) - HEAD_BYTES - waiting.size:
            buffers.append(bytes(padding))
    return buffers
