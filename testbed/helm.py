"""Helm, built here from its module at a pinned version.

The Go command checks every module against the checksum database; the versions of all it depends on stand in
Helm's own go.mod. The first build takes about two minutes on two cores; the binary is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.cache import CACHE, building
from testbed.server import ServerUnavailable

VERSION = "v3.22.0"
MODULE = f"helm.sh/helm/v3/cmd/helm@{VERSION}"
BUILD_SECONDS = 900.0
RUN_SECONDS = 60.0
KUBERNETES = "1.37.0"
"""What Helm takes the cluster for where none is named. Set when it is linked: it would say 1.20 otherwise."""
_LINKED = "helm.sh/helm/v3/pkg/chartutil.k8sVersion"


@dataclass(frozen=True, slots=True)
class Helm:
    """The command, with no configuration of the person's own."""

    binary: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Never raises for an exit status: what it refuses is as interesting as what it accepts."""
        home = self.binary.parent / "home"
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(home),
            "HELM_NO_PLUGINS": "1",
            "KUBECONFIG": os.devnull,
        }
        return subprocess.run(
            [str(self.binary), *(str(argument) for argument in arguments)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )

    def template(
        self,
        chart: Path,
        *arguments: str | Path,
        values: Sequence[Path] = (),
        kubernetes: str = KUBERNETES,
        release: str = "demo",
        namespace: str = "imaging",
    ) -> subprocess.CompletedProcess[str]:
        """What an installation would create, hooks included."""
        files = [part for path in values for part in ("--values", path)]
        return self.run(
            "template",
            release,
            chart,
            "--namespace",
            namespace,
            "--kube-version",
            kubernetes,
            *files,
            *arguments,
        )


def helm() -> Helm:
    """Helm at the pinned version, from the cache or built now.

    Raises:
        ServerUnavailable: there is no Go command, or the module cannot be had or built.
    """
    folder = f"helm-{VERSION}"
    with building(folder) as scratch:
        if scratch is not None:
            _build(scratch)
    return Helm(CACHE / folder / "helm")


def _build(folder: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise ServerUnavailable(
            "needs the Go command (1.26 or later) to build Helm, and there is none on the PATH"
        )
    major, minor, _ = KUBERNETES.split(".")
    linker = f"-s -w -X {_LINKED}Major={major} -X {_LINKED}Minor={minor}"
    command = [go, "install", "-trimpath", f"-ldflags={linker}", MODULE]
    environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    if nice := shutil.which("nice"):
        command = [nice, *command]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerUnavailable(f"building {MODULE} took more than {BUILD_SECONDS:.0f} s") from error
    if done.returncode:
        raise ServerUnavailable(f"{MODULE} cannot be built: {done.stderr[-400:]}")
