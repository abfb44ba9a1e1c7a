"""A Java runtime for servers that need one: the machine's, else Debian's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from testbed.cache import apt_install
from testbed.server import ServerUnavailable

OLDEST = 17
PACKAGE = "openjdk-17-jre-headless"


def java() -> Path:
    """The `java` to use, version 17 or later.

    Raises:
        ServerUnavailable: there is none, and none can be installed.
    """
    found = _on_this_machine()
    if found is None:
        try:
            apt_install(PACKAGE)
        except ServerUnavailable as error:
            raise ServerUnavailable(f"needs a Java runtime {OLDEST} or later: {error}") from None
        found = _on_this_machine()
    if found is None:
        raise ServerUnavailable(f"needs a Java runtime {OLDEST} or later; {PACKAGE} did not bring one")
    return found


def _on_this_machine() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    candidates = [Path(home) / "bin" / "java"] if home else []
    if on_path := shutil.which("java"):
        candidates.append(Path(on_path))
    candidates += sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True)
    return next((one for one in candidates if one.exists() and _major(one) >= OLDEST), None)


def _major(binary: Path) -> int:
    try:
        done = subprocess.run([binary, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(version.group(1)) if version else 0
