"""Entries on one disk: whole or not there, whatever happens in between.

    entries/<name>/     what readers open
    parts/<random>/     in the making; deleted at every start
    trash/<random>/     on its way out: renamed first, so that it is gone at once; open descriptors stay valid
    quarantine/<name>/  what did not match its checksums, for whoever looks into it

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isocenter.common.errors import IntegrityError, StoreFull, StoreUnavailable
from isocenter.gpu_stager.manifest import MANIFEST, VERSION, Entry

NAME: Final = re.compile(r"[a-z2-7]{26}-[0-9a-f]{16}")
HEAD: Final = "entry.json"
"""What a start needs of a manifest that may have megabytes."""
KEPT_DAMAGED: Final = 4
"""Entries in quarantine; older ones go."""
_BROKEN: Final = frozenset(
    {errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EUCLEAN, errno.ENOTCONN}
)


class CacheBroken(StoreUnavailable):
    """The disk itself fails: others may serve."""

    code = "cache-broken"


@dataclass(frozen=True, slots=True)
class Head:
    """An entry as a start finds it."""

    name: str
    study_key: str
    series_key: str
    modality: str
    size_bytes: int


class Directory:
    """One folder on one disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries = root / "entries"
        self._parts = root / "parts"
        self._trash = root / "trash"
        self._quarantine = root / "quarantine"

    def path(self, name: str) -> Path:
        """Raises IntegrityError: that is no name of an entry."""
        if NAME.fullmatch(name) is None:
            raise IntegrityError("not the name of a staged entry")
        return self._entries / name

    def open(self) -> list[Head]:
        """Makes the folders, for this user alone, and removes what was in the making or on its way out, and
        what is no entry of this release. Returns the entries.

        Raises:
            StoreUnavailable, CacheBroken
        """
        with _told():
            for folder in (self.root, self._entries, self._parts, self._trash, self._quarantine):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            for folder in (self._parts, self._trash):
                for left in folder.iterdir():
                    _remove(left)
            heads = []
            with os.scandir(self._entries) as items:
                for item in items:
                    head = _head(Path(item.path)) if NAME.fullmatch(item.name) else None
                    if head is None or head.name != item.name:
                        self._throw(Path(item.path))
                    else:
                        heads.append(head)
            self.empty_trash()
            return heads

    def check(self) -> None:
        """Writes and syncs a little. Raises StoreFull, StoreUnavailable, CacheBroken: nothing can be staged
        here.
        """
        with _told():
            trial = self._parts / secrets.token_hex(8)
            try:
                _write(trial, bytes(512))
                _sync(trial)
            finally:
                with suppress(OSError):
                    trial.unlink(missing_ok=True)

    def begin(self) -> Path:
        """A folder for an entry in the making. Raises StoreFull, StoreUnavailable, CacheBroken."""
        with _told():
            part = self._parts / secrets.token_hex(8)
            part.mkdir(mode=0o700)
            return part

    def abandon(self, part: Path) -> None:
        with suppress(OSError):
            _remove(part)

    def commit(self, part: Path, entry: Entry) -> Path:
        """Makes the entry visible, whole and durable. One of that name stays: it has the same bytes.

        Until the last rename nothing is under `entries`, and all that it brings there is on the disk by then.

        Raises:
            StoreFull, StoreUnavailable, CacheBroken
        """
        target = self.path(entry.name)
        with _told():
            if (target / MANIFEST).exists():
                self.abandon(part)
                return target
            head = {
                "version": VERSION,
                "name": entry.name,
                "study_key": entry.study_key,
                "series_key": entry.series_key,
                "modality": entry.modality,
                "size_bytes": entry.size_bytes,
            }
            _write(part / HEAD, json.dumps(head).encode())
            _write(part / f".{MANIFEST}", entry.to_json())
            (part / f".{MANIFEST}").rename(part / MANIFEST)
            for folder, _, files in os.walk(part, topdown=False, onerror=_raise):
                for name in files:
                    _sync(Path(folder) / name)
                _sync(Path(folder))
            if target.exists():  # without a manifest it is none
                self._throw(target)
            part.rename(target)
            try:
                _sync(self._entries)
            except OSError:
                with suppress(OSError):
                    self._throw(target)  # nobody accounts for it
                raise
            return target

    def manifest(self, name: str) -> Entry:
        """Raises IntegrityError: it is not there, or is none."""
        try:
            return Entry.from_json((self.path(name) / MANIFEST).read_bytes())
        except OSError:
            raise IntegrityError("a staged entry lost its manifest", entry=name) from None

    def evict(self, name: str) -> None:
        """Gone at once for whoever looks, and not back after a power cut: a patient may have asked for it.
        Its bytes follow with `empty_trash`. Raises StoreFull, StoreUnavailable, CacheBroken.
        """
        with _told():
            self._throw(self.path(name))
            _sync(self._entries)

    def quarantine(self, name: str) -> None:
        """Out of reach, and kept for a while. Raises StoreFull, StoreUnavailable, CacheBroken."""
        with _told():
            source, target = self.path(name), self._quarantine / name
            if target.exists():
                self._throw(target)
            source.rename(target)
            _sync(self._quarantine)
            _sync(self._entries)
            damaged = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_mtime)
            for old in damaged[:-KEPT_DAMAGED]:
                self._throw(old)

    def forget_damaged(self, *, study_key: str | None = None, series_key: str | None = None) -> None:
        """What is in quarantine of a study or series is a patient's, too. What does not say whose it is goes
        as well. Raises StoreFull, StoreUnavailable, CacheBroken.
        """
        with _told():
            going = []
            for item in self._quarantine.iterdir():
                head = _head(item)
                if head is None or (
                    study_key in {None, head.study_key} and series_key in {None, head.series_key}
                ):
                    going.append(item)
            for item in going:
                self._throw(item)
            if going:
                _sync(self._quarantine)
                self.empty_trash()

    def empty_trash(self) -> None:
        with suppress(OSError):
            for left in self._trash.iterdir():
                _remove(left)

    def space(self) -> tuple[int, int]:
        """Free bytes for this user, and all bytes, of the disk. Raises StoreUnavailable, CacheBroken."""
        with _told():
            found = os.statvfs(self.root)
            return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def _throw(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            path.rename(self._trash / secrets.token_hex(8))


def _head(path: Path) -> Head | None:
    """None: no entry of this release."""
    try:
        if not (path / MANIFEST).stat().st_size:
            return None
    except OSError:
        return None
    try:
        document = json.loads((path / HEAD).read_bytes())
        if document.pop("version") != VERSION:
            return None
        head = Head(**document)
        texts = (head.name, head.study_key, head.series_key, head.modality)
        if all(type(text) is str for text in texts) and type(head.size_bytes) is int and head.size_bytes >= 0:
            return head
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return _slow_head(path)


def _slow_head(path: Path) -> Head | None:
    """From the manifest, which may have megabytes. None: it is none of this release."""
    try:
        entry = Entry.from_json((path / MANIFEST).read_bytes())
    except (OSError, IntegrityError):
        return None
    return Head(entry.name, entry.study_key, entry.series_key, entry.modality, entry.size_bytes)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StoreFull("the disk of staged volumes is full") from None
        kind = CacheBroken if error.errno in _BROKEN else StoreUnavailable
        raise kind(f"the disk of staged volumes fails: {error.strerror}") from None
