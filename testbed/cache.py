"""Where downloaded servers are kept, and how they get there: pinned, checked, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testbed.server import ServerUnavailable

CACHE = Path(os.environ.get("ISOCENTER_TESTBED_CACHE") or Path.home() / ".cache" / "isocenter" / "testbed")
_PIECE = 1 << 20


@contextmanager
def building(name: str) -> Iterator[Path | None]:
    """Yields an empty folder that becomes `CACHE/name` when the block ends well; None if that is there.

    Two test runs at once build it once.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / name
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=CACHE))
        try:
            yield scratch
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def download(url: str, sha256: str, target: Path) -> None:
    """Raises ServerUnavailable: it cannot be reached, or it is not what was pinned."""
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as out:  # noqa: S310 - https, pinned
            while piece := answer.read(_PIECE):
                digest.update(piece)
                out.write(piece)
    except OSError as error:
        raise ServerUnavailable(f"{url} cannot be downloaded: {error}") from error
    if digest.hexdigest() != sha256:
        raise ServerUnavailable(f"{url} has SHA-256 {digest.hexdigest()}, pinned is {sha256}")


def apt_install(*packages: str) -> None:
    """Debian packages, with no service started. Raises ServerUnavailable where that is not possible."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, and apt does not wait
        _apt_install(packages)


def _apt_install(packages: Sequence[str]) -> None:
    missing = [package for package in packages if not _installed(package)]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ServerUnavailable(f"needs Debian packages {' '.join(missing)}, and root to install them")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "--yes", "--no-install-recommends", "-qq", *missing],
        ):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ServerUnavailable(f"{' '.join(command)} failed: {done.stderr[-400:]}")
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def _installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() == "installed"


def must_be_available() -> bool:
    """Under CI on Debian as root everything can be installed: what is missing is a failure, not a skip."""
    return (
        os.environ.get("CI", "") not in {"", "0", "false"}
        and shutil.which("apt-get") is not None
        and os.geteuid() == 0
    )
