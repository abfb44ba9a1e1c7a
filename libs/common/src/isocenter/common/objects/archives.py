"""Archives of other systems, whose files are read where they lie: directories, and prefixes in S3.

Which of them a site has adopted is in one file of the data directory. Nothing outside of them is ever read.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import obstore
from obstore.exceptions import BaseError, NotFoundError, PreconditionError
from obstore.store import S3Store

from isocenter.common.errors import IntegrityError, Misconfigured, NotFound, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import S3Config

ARCHIVES_FILE: Final = "archives.json"
_S3: Final = "s3://"
_TIMEOUT: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an archive is.

    Attributes:
        root: absolute path of a directory, or `s3://bucket/prefix`. It is the archive's name, too.
        endpoint: of S3. The keys are `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` of the environment;
            without them requests are not signed.
    """

    root: str
    endpoint: str = ""
    region: str = "us-east-1"

    def open(self) -> Archive:
        """Raises Misconfigured."""
        return S3Archive(self) if self.root.startswith(_S3) else DirectoryArchive(Path(self.root))


@dataclass(frozen=True, slots=True)
class Found:
    """A file of an archive. `tag` changes with its content, as far as the archive can tell."""

    path: str
    size: int
    tag: str


@dataclass(frozen=True, slots=True)
class Passed:
    """What is no file: a link, a pipe, something that cannot be looked at."""

    path: str
    reason: str


class Archive(Protocol):
    def files(self) -> AsyncIterator[Found | Passed]:
        """In an order that is the same each time. Raises StoreUnavailable."""
        ...

    async def read(self, found: Found, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file that is still what was found.

        Raises:
            NotFound: it is gone.
            IntegrityError: it was changed.
            StoreUnavailable: the whole archive is gone, or does not answer.
        """
        ...

    async def remove(self, found: Found) -> None:
        """Durably. Raises as `read`."""
        ...


class DirectoryArchive:
    """A directory, with all that is below it. Links are not followed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def files(self) -> AsyncIterator[Found | Passed]:
        if not self._root.is_dir():
            raise StoreUnavailable("an adopted directory is not there")
        for each in self._walk(self._root):
            yield each

    async def read(self, found: Found, start: int, end: int) -> bytes:
        return await asyncio.to_thread(self._read, found, start, end)

    async def remove(self, found: Found) -> None:
        await asyncio.to_thread(self._remove, found)

    def _walk(self, folder: Path) -> Iterator[Found | Passed]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield Passed(self._name(folder), f"cannot be read: {error.strerror}")
            return
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                yield Passed(self._name(path), "a link")
            elif entry.is_dir(follow_symlinks=False):
                yield from self._walk(path)
            elif entry.is_file(follow_symlinks=False):
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    yield Passed(self._name(path), f"cannot be read: {error.strerror}")
                else:
                    yield Found(self._name(path), status.st_size, _tag(status))
            else:
                yield Passed(self._name(path), "no file")

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    def _open(self, found: Found) -> int:
        try:
            descriptor = os.open(self._root / found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not self._root.is_dir():
                raise StoreUnavailable("an adopted directory is not there") from None
            raise NotFound("an adopted file is gone") from None
        except OSError as error:
            raise StoreUnavailable("an adopted file cannot be read", errno=error.errno or 0) from None
        if _tag(os.fstat(descriptor)) != found.tag:
            os.close(descriptor)
            raise IntegrityError("an adopted file was changed")
        return descriptor

    def _read(self, found: Found, start: int, end: int) -> bytes:
        descriptor = self._open(found)
        try:
            with os.fdopen(descriptor, "rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise StoreUnavailable("an adopted file cannot be read", errno=error.errno or 0) from None

    def _remove(self, found: Found) -> None:
        os.close(self._open(found))
        path = self._root / found.path
        try:
            path.unlink()
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreUnavailable("a file cannot be removed", errno=error.errno or 0) from None


class S3Archive:
    """Objects below a prefix of a bucket."""

    def __init__(self, place: Place) -> None:
        """Raises Misconfigured: no endpoint."""
        bucket, _, prefix = place.root.removeprefix(_S3).partition("/")
        if not place.endpoint or not bucket:
            raise Misconfigured("an archive in S3 needs a bucket and an endpoint")
        self._prefix = prefix.strip("/")
        access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        keys: S3Config = {"skip_signature": True}
        if access and secret:
            keys = {"access_key_id": access, "secret_access_key": secret}
        self._store = S3Store(
            bucket,
            endpoint=place.endpoint.rstrip("/"),
            region=place.region,
            config=keys,
            virtual_hosted_style_request=False,
            client_options={"allow_http": place.endpoint.startswith("http://"), "timeout": _TIMEOUT},
        )

    async def files(self) -> AsyncIterator[Found | Passed]:
        try:
            async for page in obstore.list(self._store, self._prefix or None, chunk_size=1000):
                for each in page:
                    yield Found(each["path"], each["size"], each["e_tag"] or "")
        except BaseError as error:
            raise _failure(error) from None

    async def read(self, found: Found, start: int, end: int) -> bytes:
        options: Any = {"range": (start, end)}
        if found.tag:
            options["if_match"] = found.tag
        try:
            answer = await obstore.get_async(self._store, found.path, options=options)
            return bytes(await answer.bytes_async())
        except BaseError as error:
            raise _failure(error) from None

    async def remove(self, found: Found) -> None:
        try:
            await obstore.delete_async(self._store, found.path)
        except BaseError as error:
            raise _failure(error) from None


class Archives:
    """Those that a site has adopted."""

    def __init__(self, folder: Path) -> None:
        """Raises Misconfigured: the file in the data directory cannot be read."""
        self._file = folder / ARCHIVES_FILE
        self._open: dict[str, Archive] = {}
        self._places: dict[str, Place] = {}
        try:
            for each in json.loads(self._file.read_text()):
                place = Place(**each)
                self._places[place.root] = place
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            raise Misconfigured(f"{self._file} cannot be read: {type(error).__name__}") from None

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, place: Place) -> None:
        """From now on, in later processes too, what lies there may be referred to."""
        self._places[place.root] = place
        temporary = self._file.with_name(f".{ARCHIVES_FILE}")
        temporary.write_text(json.dumps([asdict(each) for each in self._places.values()], indent=2) + "\n")
        temporary.chmod(0o600)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self._file)
        descriptor = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __getitem__(self, root: str) -> Archive:
        """Raises StoreUnavailable: this site has not adopted it."""
        if root not in self._open:
            place = self._places.get(root)
            if place is None:
                raise StoreUnavailable("an object lies in an archive that this site does not list")
            self._open[root] = place.open()
        return self._open[root]


def _tag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _failure(error: BaseError) -> NotFound | IntegrityError | StoreUnavailable:
    """The text of an error of obstore quotes the answer: only its type is told."""
    if isinstance(error, NotFoundError):
        return NotFound("an adopted object is gone")
    if isinstance(error, PreconditionError):
        return IntegrityError("an adopted object was changed")
    return StoreUnavailable("an adopted archive does not answer", cause=type(error).__name__)
