"""Secrets in files: written whole or not at all, and refused where others can read or replace them."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from isocenter.common.errors import Misconfigured


def read_own(path: Path, what: str) -> bytes:
    """A secret in a file of ours.

    Raises:
        Misconfigured: it cannot be read, or group or others can.
    """
    mode, secret = _read(path, what)
    if mode & 0o077:
        raise Misconfigured(f"{what} {path} has mode {mode:04o}: run chmod 600 on it")
    return secret


def read_mounted(path: Path, what: str) -> bytes:
    """A secret that an orchestrator put there. Those are often readable by the group of the pod, or by all
    inside it, so reading is not refused; writing is.

    Raises:
        Misconfigured: it cannot be read, or can be written by group or others.
    """
    mode, secret = _read(path, what)
    if mode & 0o022:
        raise Misconfigured(f"{what} {path} has mode {mode:04o}: others can replace it")
    return secret


def write_new(path: Path, secret: bytes) -> bool:
    """Creates the file (mode 0600), durable on return; False if it is there already, whoever was quicker."""
    if path.exists():
        return False
    temporary = _written_beside(path, secret)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync(path.parent)
    return True


def replace(path: Path, secret: bytes) -> None:
    """Durable on return; at no moment is there less than the old or the new content."""
    _written_beside(path, secret).rename(path)
    _sync(path.parent)


def _read(path: Path, what: str) -> tuple[int, bytes]:
    try:
        return stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"{what} {path} cannot be read: {error.strerror}") from None


def _written_beside(path: Path, secret: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, secret)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return temporary


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
