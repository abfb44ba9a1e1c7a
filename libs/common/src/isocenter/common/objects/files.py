"""Files and directories that survive power loss: the blocking calls under the local store."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from isocenter.common.errors import IsocenterError, StoreFull, StoreUnavailable

_MAX_KNOWN_DIRECTORIES: Final = 50_000
_MAX_BUFFERS: Final = 512
"""Pieces of one vectored write; Linux takes 1,024."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers that say there is no room."""


def make_durable_directory(path: Path) -> None:
    """Creates the directory (mode 0700) and its missing parents, and syncs every entry that is new."""
    missing = list(itertools.takewhile(lambda parent: not parent.exists(), (path, *path.parents)))
    for directory in reversed(missing):
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        sync_directory(directory.parent)


class KnownDirectories:
    """Directories whose own entries this process knows to be there, or to be durable."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: set[Path] = {root}
        self._made: set[Path] = {root}
        self._lock = threading.Lock()

    def make(self, directory: Path) -> None:
        """Creates it and its missing parents, without a sync."""
        if directory in self._made:
            return
        for path in reversed((directory, *directory.parents)):
            if self._root in path.parents and path not in self._made:
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                if len(self._made) >= _MAX_KNOWN_DIRECTORIES:
                    self._made = {self._root}
                self._made.add(path)

    def ensure(self, directory: Path) -> None:
        with self._lock:
            if directory in self._known:
                return
            if len(self._known) >= _MAX_KNOWN_DIRECTORIES:
                self._known = {self._root}
            missing = list(
                itertools.takewhile(lambda path: path not in self._known, (directory, *directory.parents))
            )
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            sync_directory(path.parent)
        with self._lock:
            self._known.update(missing)


def translated(error: OSError) -> IsocenterError:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    if error.errno in FULL:
        return StoreFull("no space for objects", errno=name)
    return StoreUnavailable("the object directory does not answer as it must", errno=name)


def create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    descriptor = create(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_at(descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
    """All of the buffers, one behind the other."""
    for first in range(0, len(buffers), _MAX_BUFFERS):
        position = _write_at(descriptor, buffers[first : first + _MAX_BUFFERS], position, 0)


def write_durably(descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
    """The same; durable on return, with the file's length where that grew."""
    if len(buffers) <= _MAX_BUFFERS:
        _write_at(descriptor, buffers, position, os.RWF_DSYNC)
    else:
        write_at(descriptor, buffers, position)
        os.fdatasync(descriptor)


def _write_at(
    descriptor: int, buffers: Sequence[bytes | bytearray | memoryview], position: int, flags: int
) -> int:
    """Returns the position behind the last byte."""
    end = position + sum(map(len, buffers))
    written = os.pwritev(descriptor, buffers, position, flags)
    if position + written < end:
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            position = end - len(rest)
            rest = rest[os.pwritev(descriptor, [rest], position, flags) :]
    return end


def sync_file(descriptor: int) -> None:
    os.fsync(descriptor)


def open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_file_system(descriptor: int) -> None:
    """Everything written to the file system since `descriptor` was opened is durable on return, if it never
    failed before. Linux tells each open file of an error once: after one, and to a descriptor opened behind
    it, success says nothing of what was written earlier. Raises OSError.
    """
    if _LIBC.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, start: int, size: int) -> bytes:
    """Up to `size` bytes; fewer only at the end of the file (a single read stops at 2 GiB on Linux)."""
    piece = os.pread(descriptor, size, start)
    if len(piece) == size or not piece:
        return piece
    pieces = [piece]
    have = len(piece)
    while have < size and (piece := os.pread(descriptor, size - have, start + have)):
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces)
