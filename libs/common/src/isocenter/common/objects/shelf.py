"""The blocking half of the local store: files under `objects/`, unfinished ones under `staging/`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isocenter.common.clock import Clock
from isocenter.common.errors import IntegrityError, NotFound, StoreUnavailable
from isocenter.common.objects.blanks import Blanks
from isocenter.common.objects.claims import Claims
from isocenter.common.objects.deletions import Deletions
from isocenter.common.objects.files import (
    KnownDirectories,
    create,
    make_durable_directory,
    new_file,
    open_directory,
    read_exactly,
    sync_directory,
    sync_file,
    sync_file_system,
    write_all,
    write_at,
)
from isocenter.common.objects.journal import SEGMENT_BYTES, Buffer, Entry, Journal, NoRoom, Segment
from isocenter.common.objects.keys import check_key
from isocenter.common.objects.pending import PendingLinks
from isocenter.common.objects.ports import ObjectInfo, PutResult
from isocenter.common.objects.replay import key_of, owners, replay
from isocenter.common.objects.trailer import TAIL_BYTES, decode_trailer, encode_trailer, trailer_size
from isocenter.common.objects.workspace import Workspace

_SUFFIX: Final = "@1"
_PIECE: Final = 1 << 20
_LINK_TRIES: Final = 5
_LOCK: Final = ".lock"
_CLAIMS: Final = "claims.lock"
_FRESH: Final = ".fresh"


@dataclass(frozen=True, slots=True)
class Existing:
    """What a put finds under its key: a sound object, or none; perhaps one that had to be set aside."""

    kept: PutResult | None = None
    damaged: bool = False


class Shelf:
    """Puts files in place and finds them again. Called from threads of the pool; holds no descriptor of an
    object. What it holds is one of their directory, opened before anything is written: that one is told of
    every write that fails afterwards, whoever else heard of it.

    Raises (every method): OSError as the system gave it, which `LocalObjectStore` translates.
    """

    def __init__(self, root: Path, clock: Clock, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._clock = clock
        self._objects = root / "objects"
        make_durable_directory(self._objects)
        self._file_system = open_directory(self._objects)
        self._staging = root / "staging"
        make_durable_directory(self._staging)
        make_durable_directory(root / "pending")
        make_durable_directory(root / "journal")
        self.pending = PendingLinks(root / "pending")
        self._known = KnownDirectories(self._objects)
        self._damaged = root / "damaged"
        self._journals = root / "journal"
        self._deletions = Deletions(self._journals)
        self._claims = Claims(self._journals / _CLAIMS)
        try:
            self._workspace = self._open_workspace()
        except BaseException:
            self._claims.close()
            os.close(self._file_system)
            raise
        self._blanks = Blanks(self._workspace)
        self._deletions.clear()
        self.journal = Journal(
            self._journals, self._workspace.path.name, self._settle, segment_bytes=segment_bytes
        )

    def _open_workspace(self) -> Workspace:
        return Workspace(
            self._staging,
            adopt=self.pending.adopt,
            replay=self._replay,
            # A journal is of use without its owner's part of the staging area, which an operator may empty.
            others=lambda: owners(self._journals),
        )

    def probe(self) -> None:
        if self.journal.fault is not None:
            raise StoreUnavailable("files cannot be made durable", cause=self.journal.fault)
        path = self._workspace.new_file()
        try:
            with new_file(path) as file:
                write_all(file, os.urandom(64))
                os.fsync(file)
                if len(os.pread(file, 64, 0)) != 64:
                    raise StoreUnavailable("a probe file cannot be read back")
        finally:
            path.unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        path = self._path(key)
        with self._claims.of(key), suppress(FileNotFoundError):
            path.stat()
            self._deletions.note(key)
            path.unlink()
            sync_directory(path.parent)

    def confirm(self, keys: list[str]) -> None:
        self.journal.confirm(keys)
        self.pending.confirm(keys)

    def close(self) -> None:
        whole = self.journal.close()
        self._blanks.close()
        self._workspace.close(leave=not whole)
        try:
            if whole:  # else nothing was adopted
                self.pending.sync()
        finally:
            self._claims.close()
            os.close(self._file_system)

    def _path(self, key: str) -> Path:
        return self._objects / f"{check_key(key)}{_SUFFIX}"

    def open(self, key: str) -> tuple[int, ObjectInfo]:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("no such object", key=key) from None
        try:
            return descriptor, _read_info(descriptor, key)
        except BaseException:
            os.close(descriptor)
            raise

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, ObjectInfo]]:
        descriptor, info = self.open(key)
        try:
            yield descriptor, info
        finally:
            os.close(descriptor)

    def head(self, key: str) -> ObjectInfo:
        with self._opened(key) as (_, info):
            return info

    def read_whole(self, key: str) -> bytes:
        with self._opened(key) as (descriptor, info):
            data = read_exactly(descriptor, 0, info.size)
        if len(data) != info.size or hashlib.sha256(data).hexdigest() != info.sha256:
            raise IntegrityError("object does not hash to its digest", key=key)
        return data

    def read_range(self, key: str, start: int, end: int) -> bytes:
        with self._opened(key) as (descriptor, info):
            start, end = max(0, start), min(end, info.size)
            return read_exactly(descriptor, start, max(0, end - start))

    def walk(self, prefix: str, start_after: str, damaged: list[str]) -> Iterator[ObjectInfo]:
        pending = [""]
        while pending:
            name = pending.pop()
            if name.endswith("/") or not name:
                # Descending, so that the smallest comes off the stack first.
                pending.extend(sorted(self._children(name, prefix, start_after), reverse=True))
                continue
            try:
                yield self.head(name)
            except NotFound:
                continue  # deleted since its directory was read
            except IntegrityError:
                damaged.append(name)

    def _children(self, directory: str, prefix: str, start_after: str) -> Iterator[str]:
        """Keys, and names of directories with a slash, below `directory`: sorted, they are in key order."""
        with suppress(FileNotFoundError), os.scandir(self._objects / directory) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX):
                    key = directory + entry.name.removesuffix(_SUFFIX)
                    if key.startswith(prefix) and key > start_after:
                        yield key
                elif entry.is_dir(follow_symlinks=False):
                    below = f"{directory}{entry.name}/"
                    wanted = below.startswith(prefix) or prefix.startswith(below)
                    if wanted and (below > start_after or start_after.startswith(below)):
                        yield below

    def commit_file(self, staged: Path, descriptor: int, info: ObjectInfo, *, pending: bool) -> PutResult:
        """Trailer, sync of the file, journal, name: for objects whose bytes are not worth writing twice.

        Args:
            staged: an unfinished file of `new_staged`. It is closed here, and gone on a failure.
            descriptor: of it, behind the last byte of the payload.
            info: what its trailer will say.
            pending: something must follow.
        """
        kept = False
        try:
            result, kept = self._commit_file(staged, descriptor, info, pending=pending)
            return result
        finally:
            os.close(descriptor)
            if not kept:
                staged.unlink(missing_ok=True)

    def _commit_file(
        self, staged: Path, descriptor: int, info: ObjectInfo, *, pending: bool
    ) -> tuple[PutResult, bool]:
        """Also whether the unfinished file's name is not to be removed."""
        path = self._path(info.key)
        with self._claims.of(info.key):
            found = self.existing(info.key, info.sha256) if os.access(path, os.F_OK) else Existing()
            if found.kept is not None:
                return found.kept, False
            write_all(descriptor, encode_trailer(info))
            sync_file(descriptor)
            self._known.make(path.parent)
            try:
                entry = self.journal.append_named(info.key, staged, pending=pending)
            except NoRoom:
                return self._place_alone(
                    staged, descriptor, info, pending=pending, healed=found.damaged
                ), True
            try:
                # Not renamed: should the new name be lost, the old one must be there.
                os.link(staged, path)
            except BaseException:
                self.journal.void(entry)
                raise
            entry.placed = True
            return PutResult(info, created=True, identical=True, healed=found.damaged), True

    def commit_small(self, payload: Buffer, info: ObjectInfo, *, pending: bool) -> PutResult:
        """File, journal, name: the record is durable before the name is there to be seen. Where the journal
        cannot take it the file is synced itself.

        Args:
            payload: all of it.
            info: what its trailer will say.
            pending: something must follow.
        """
        staged = self._workspace.new_file()
        descriptor = create(staged)
        kept = False
        try:
            result, kept = self._commit_small(payload, info, staged, descriptor, pending=pending)
            return result
        finally:
            os.close(descriptor)
            if not kept:
                staged.unlink(missing_ok=True)

    def _commit_small(
        self, payload: Buffer, info: ObjectInfo, staged: Path, descriptor: int, *, pending: bool
    ) -> tuple[PutResult, bool]:
        """Also whether the unfinished file's name is not to be removed: it has another now, or is needed."""
        path = self._path(info.key)
        trailer = encode_trailer(info)
        with self._claims.of(info.key):
            found = self.existing(info.key, info.sha256) if os.access(path, os.F_OK) else Existing()
            if found.kept is not None:
                return found.kept, False
            doubts = self.journal.doubts
            write_at(descriptor, (payload, trailer), 0)
            self._known.make(path.parent)
            try:
                entry = self.journal.append(info.key, (payload, trailer), pending=pending, doubts=doubts)
            except NoRoom:
                return self._place_alone(
                    staged, descriptor, info, pending=pending, healed=found.damaged
                ), True
            try:
                # Nobody else writes to this name now. Cheaper than a link and an unlink.
                os.rename(staged, path)  # noqa: PTH104 - on the way of every small object
            except BaseException:
                self.journal.void(entry)
                raise
            entry.placed = True
            return PutResult(info, created=True, identical=True, healed=found.damaged), True

    def _place_alone(
        self, staged: Path, descriptor: int, info: ObjectInfo, *, pending: bool, healed: bool
    ) -> PutResult:
        """Without the journal: fsync of the file, link, fsync of every directory the name depends on."""
        marked = self.pending.mark(staged) if pending else staged
        try:
            result = self._place(marked, descriptor, info, healed=healed)
        except BaseException:
            marked.unlink(missing_ok=True)
            raise
        if pending and result.created:
            self.pending.add(info.key, marked)
        else:
            marked.unlink(missing_ok=True)
        return result

    def _place(self, staged: Path, descriptor: int, info: ObjectInfo, *, healed: bool) -> PutResult:
        path = self._path(info.key)
        sync_file(descriptor)
        if self.pending.marked(staged):
            sync_directory(staged.parent)
        self._known.ensure(path.parent)
        for _ in range(_LINK_TRIES):
            try:
                os.link(staged, path)
            except FileExistsError:
                found = self.existing(info.key, info.sha256)
                healed |= found.damaged
                if found.kept is not None:
                    return found.kept
            else:
                sync_directory(path.parent)
                return PutResult(info, created=True, identical=True, healed=healed)
        raise StoreUnavailable("object came and went while it was compared", key=info.key)

    def existing(self, key: str, sha256: str) -> Existing:
        """What is under the key already, made durable: its writer may not have synced the directory yet.

        It is read and hashed first: who sends an instance again because it was lost must not hear that all is
        well. A damaged object is set aside, whole, for an operator, and its key is free.
        """
        path = self._path(key)
        try:
            kept = self._checked(key)
        except NotFound:
            return Existing()
        except IntegrityError:
            self._set_aside(key)
            return Existing(damaged=True)
        if not self.journal.holds(key):
            self._known.ensure(path.parent)
            sync_directory(path.parent)
        return Existing(PutResult(kept, created=False, identical=kept.sha256 == sha256))

    def _checked(self, key: str) -> ObjectInfo:
        with self._opened(key) as (descriptor, info):
            _check(descriptor, info)
        return info

    def _set_aside(self, key: str) -> None:
        """One at a time over all threads and processes: another may have healed the object meanwhile, and
        what it put there must stay.
        """
        make_durable_directory(self._damaged)
        path = self._path(key)
        lock = os.open(self._damaged / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._checked(key)
        except NotFound:
            pass
        except IntegrityError:
            path.rename(self._damaged / f"{path.name}.{secrets.token_hex(4)}")
            sync_directory(path.parent)
            sync_directory(self._damaged)
        finally:
            os.close(lock)

    # -- the journal's files --------------------------------------------------------------------------------

    def _settle(self, segment: Segment) -> None:
        """Makes the files of its entries durable, and second names of the pending ones. Raises OSError."""
        for entry in segment.entries:
            if entry.pending:
                self.journal.hand_over(entry, self._link_pending)
        if not segment.suspect:
            try:
                sync_file_system(self._file_system)
            except OSError:
                # Of which file nobody knows, and neither this descriptor nor theirs will be told again.
                self.journal.doubt()
        if segment.suspect:
            self._settle_singly(segment.entries)
        for entry in segment.entries:
            if entry.staged is not None:
                entry.staged.unlink(missing_ok=True)

    def _settle_singly(self, entries: list[Entry]) -> None:
        """Writes every file anew from its record. Those that the journal only names were synced themselves
        while their writer had them open, which is proof enough.
        """
        directories = {self._workspace.path}
        for entry in entries:
            parents = self._path(entry.key).parents
            directories.update(parent for parent in parents if self._objects in (parent, *parent.parents))
            if entry.staged is None and not (entry.over or entry.renewed):
                self._renew(entry)
        for directory in directories:
            sync_directory(directory)

    def _renew(self, entry: Entry) -> None:
        path = self._path(entry.key)
        with self._claims.of(entry.key):
            image = entry.body()
            if key_of(image, entry.size) != entry.key:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if not self._is_file_of(entry, path, image):
                return
            self._write_anew(path, image)
            if entry.key in self.pending:
                self._link_pending(entry.key)
            entry.renewed = True

    def _is_file_of(self, entry: Entry, path: Path, image: bytes) -> bool:
        """Whether the file under this name is the entry's, or what is left of it: the object may be deleted
        since, and another have its key.
        """
        if entry.over or not path.exists():
            return False
        if _is_image(path, image):
            return True
        deleted = self._deletions.was_deleted(entry.key, entry.time)
        return not deleted and not _is_readable(path, entry.key)

    def _link_pending(self, key: str) -> None:
        self.pending.link(key, self._path(key), self._workspace.path)

    def _replay(self, names: list[str]) -> None:
        with suppress(OSError):
            # Told of what the dead wrote, which is written anew whatever the disk made of it. From here on
            # an error is one of ours.
            sync_file_system(self._file_system)
        replay(self._journals, names, self)

    def restore(self, key: str, image: bytes, *, time: int, pending: bool) -> None:
        """Puts the file of a journal record in place unless another sound object is there; durable with the
        next `sync`. A file that reads as the record says is written anew as well: it may be sound in memory
        and lost on the disk, of which another process was told. Raises OSError.
        """
        path = self._path(key)
        with self._claims.of(key):
            if self._deletions.was_deleted(key, time):
                return
            # Never synced, or not yet: what a power loss left of it is no evidence of a failing disk.
            if _is_image(path, image) or not _is_readable(path, key):
                self._known.make(path.parent)
                self._write_anew(path, image, sync=False)
            if pending:
                self.pending.link(key, path)

    def restore_named(self, key: str, name: str, *, time: int, pending: bool) -> None:
        """Gives a file that is durable in the staging area its name unless a sound object has it. A file that
        is not there was settled, and its object set aside or deleted since. Raises OSError.
        """
        path, staged = self._path(key), self._staging / name
        with self._claims.of(key):
            if self._deletions.was_deleted(key, time):
                return
            while not _is_sound(path, key):
                if not _is_sound(staged, key):
                    return
                self._known.make(path.parent)
                path.unlink(missing_ok=True)
                with suppress(FileExistsError):  # then looked at
                    os.link(staged, path)
            if pending:
                self.pending.link(key, path)

    def sync(self) -> None:
        """What was restored is durable on return. Raises OSError."""
        sync_file_system(self._file_system)

    def _write_anew(self, path: Path, image: bytes, *, sync: bool = True) -> None:
        """To another file: of what this one has lost nobody would be told."""
        fresh = self._journals / f"{secrets.token_hex(12)}{_FRESH}"
        try:
            with new_file(fresh) as descriptor:
                write_at(descriptor, [image], 0)
                if sync:
                    sync_file(descriptor)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

    def left_pending(self, damaged: list[str]) -> Iterator[ObjectInfo]:
        """Objects that processes now dead committed as pending."""
        for path in self.pending.left():
            try:
                with _opened_path(path) as descriptor:
                    info = _read_info(descriptor)
                self.head(info.key)
            except IntegrityError:
                if path.stat().st_nlink == 1:
                    path.unlink()  # what a power loss left of a file that was written anew from the journal
                else:
                    damaged.append(path.name)
            except (FileNotFoundError, NotFound):
                path.unlink(missing_ok=True)  # deleted since: nothing is left to announce
            else:
                self.pending.add(info.key, path)
                yield info

    def new_staged(self) -> tuple[Path, int]:
        """An unfinished file, whose name is durable, and its descriptor."""
        return self._blanks.take()

    def describe(self, key: str, size: int, sha256: str, metadata: Mapping[str, str]) -> ObjectInfo:
        return ObjectInfo(key, size, sha256, metadata, self._clock.now())


@contextmanager
def _opened_path(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check(descriptor: int, info: ObjectInfo) -> None:
    """Raises IntegrityError."""
    digest = hashlib.sha256()
    position = 0
    while position < info.size:
        piece = read_exactly(descriptor, position, min(_PIECE, info.size - position))
        if not piece:
            break
        digest.update(piece)
        position += len(piece)
    if digest.hexdigest() != info.sha256:
        raise IntegrityError("object does not hash to its digest", key=info.key)


def _is_image(path: Path, image: bytes) -> bool:
    """Whether the file is there and reads byte for byte like this."""
    try:
        with _opened_path(path) as descriptor:
            size = os.fstat(descriptor).st_size
            return size == len(image) and read_exactly(descriptor, 0, size) == image
    except OSError:
        return False


def _is_readable(path: Path, key: str) -> bool:
    """The same as `_is_sound`, where a disk that cannot read the file is no reason to give up."""
    try:
        return _is_sound(path, key)
    except OSError:
        return False


def _is_sound(path: Path, key: str) -> bool:
    """Whether the file is there and is all of this object."""
    try:
        with _opened_path(path) as descriptor:
            _check(descriptor, _read_info(descriptor, key))
    except (FileNotFoundError, NotADirectoryError, IntegrityError):
        return False
    return True


def _read_info(descriptor: int, key: str | None = None) -> ObjectInfo:
    file_size = os.fstat(descriptor).st_size
    tail = read_exactly(descriptor, max(0, file_size - TAIL_BYTES), min(file_size, TAIL_BYTES))
    size = trailer_size(tail, key)
    if size > len(tail):
        tail = read_exactly(descriptor, max(0, file_size - size), min(file_size, size))
    return decode_trailer(tail[-size:], file_size, key)
