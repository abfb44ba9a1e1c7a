"""Whether Docker answers here, and may be used for the servers of the test bed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

WAYS = ("auto", "containers", "native")


@functools.cache
def docker_answers() -> bool:
    """Not the client: the engine."""
    if shutil.which("docker") is None:
        return False
    try:
        done = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def wanted() -> str:
    """`ISOCENTER_TEST_SERVERS`: auto (containers where Docker can get the image), containers, native."""
    way = os.environ.get("ISOCENTER_TEST_SERVERS", "auto")
    if way not in WAYS:
        raise ValueError(f"ISOCENTER_TEST_SERVERS is one of {', '.join(WAYS)}")
    return way


@functools.cache
def can_get(image: str) -> bool:
    """Whether the engine has the image or can pull it; asked once per run, with a limit."""
    if not docker_answers():
        return False
    for command in (["docker", "image", "inspect", image], ["docker", "pull", "--quiet", image]):
        try:
            if subprocess.run(command, capture_output=True, timeout=240, check=False).returncode == 0:
                return True
        except subprocess.TimeoutExpired:
            return False
    return False
