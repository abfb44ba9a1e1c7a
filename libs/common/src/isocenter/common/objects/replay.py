"""What dead processes left in their journals becomes files again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isocenter.common.errors import IntegrityError
from isocenter.common.objects.files import sync_directory
from isocenter.common.objects.journal import SUFFIX
from isocenter.common.objects.records import Kind, Record, scan
from isocenter.common.objects.trailer import TAIL_BYTES, decode_trailer, trailer_size


class Shelf(Protocol):
    """Where the files are. Other processes may put and delete meanwhile. Raises (every method) OSError."""

    def restore(self, key: str, image: bytes, *, time: int, pending: bool) -> None:
        """Puts the file in place unless the object was deleted after this time or another sound one is there,
        and remembers it as pending if it is.
        """
        ...

    def restore_named(self, key: str, name: str, *, time: int, pending: bool) -> None:
        """The same for a file that is durable under this name in the staging area."""
        ...

    def sync(self) -> None:
        """Everything restored is durable on return."""
        ...


@dataclass(frozen=True, slots=True)
class _Found:
    key: str
    record: Record
    pending: bool
    name: str = ""
    """Of its file in the staging area."""

    def restore(self, shelf: Shelf) -> None:
        if self.name:
            shelf.restore_named(self.key, self.name, time=self.record.time, pending=self.pending)
        else:
            shelf.restore(self.key, self.record.body(), time=self.record.time, pending=self.pending)


def owners(directory: Path) -> set[str]:
    """Names of the processes whose journals are there."""
    return {_owner(path) for path in directory.glob(f"*{SUFFIX}")}


def _owner(path: Path) -> str:
    return path.name.split(".")[0]


def replay(directory: Path, names: list[str], shelf: Shelf) -> int:
    """Puts in place what the journals of these processes hold, makes it durable and removes them.

    A record that is not whole was never acknowledged and is passed over. Of several records of a key the
    newest counts. Returns how many objects were looked at.

    Raises:
        OSError: the journals stay as they are; a second replay does the same again.
    """
    paths = [path for path in sorted(directory.glob(f"*{SUFFIX}")) if _owner(path) in names]
    if not paths:
        return 0
    newest: dict[str, _Found] = {}
    with ExitStack() as stack:
        for name in names:
            descriptors = [_opened(path, stack.callback) for path in paths if _owner(path) == name]
            for found in _records(descriptors):
                before = newest.get(found.key)
                if before is None or before.record.time < found.record.time:
                    newest[found.key] = found
        for found in sorted(newest.values(), key=lambda one: one.record.time):
            found.restore(shelf)
    shelf.sync()
    for path in paths:
        path.unlink(missing_ok=True)
    sync_directory(directory)
    return len(newest)


def _opened(path: Path, later: Callable[[Callable[[int], None], int], object]) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    later(os.close, descriptor)
    return descriptor


def _records(descriptors: list[int]) -> list[_Found]:
    """The whole objects of one journal that did not come to nothing."""
    objects: list[Record] = []
    confirmed: set[int] = set()
    void: set[int] = set()
    for descriptor in descriptors:
        for record in scan(descriptor):
            if record.kind is Kind.CONFIRMED:
                confirmed |= record.numbers()
            elif record.kind is Kind.VOID:
                void |= record.numbers()
            else:
                objects.append(record)
    found = []
    for record in objects:
        if record.number in void:
            continue
        pending = record.kind in {Kind.PENDING, Kind.NAMED_PENDING} and record.number not in confirmed
        if record.kind in {Kind.NAMED, Kind.NAMED_PENDING}:
            if (place := record.place()) is not None:
                found.append(_Found(place[0], record, pending, place[1]))
        elif (key := key_of(record.body(), record.size)) is not None:
            found.append(_Found(key, record, pending))
    return found


def key_of(image: bytes, size: int) -> str | None:
    """The key of the object whose file this is, or None if it is not all of it."""
    if len(image) != size:
        return None
    try:
        length = trailer_size(image[-TAIL_BYTES:], None)
        info = decode_trailer(image[-length:], size, None)
    except IntegrityError:
        return None
    whole = hashlib.sha256(memoryview(image)[: info.size]).hexdigest() == info.sha256
    return info.key if whole else None
