"""One writer of a key at a time, over threads and processes."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_STRIPES: Final = 256
_RANGE: Final = "@hhqqi"
"""struct flock: type, whence, start, length, process id."""


class Claims:
    """Locks on ranges of one file, each for the keys of a stripe. Between processes they are open file
    description locks, which the kernel drops when the process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._locks = [threading.Lock() for _ in range(_STRIPES)]

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Raises OSError."""
        stripe = zlib.crc32(key.encode()) % _STRIPES
        with self._locks[stripe]:
            self._range(fcntl.F_WRLCK, stripe)
            try:
                yield
            finally:
                self._range(fcntl.F_UNLCK, stripe)

    def close(self) -> None:
        os.close(self._descriptor)

    def _range(self, kind: int, stripe: int) -> None:
        fcntl.fcntl(
            self._descriptor, fcntl.F_OFD_SETLKW, struct.pack(_RANGE, kind, os.SEEK_SET, stripe, 1, 0)
        )
