"""Prometheus and promtool from Debian."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.cache import apt_install
from testbed.server import Server, free_port

PACKAGE = "prometheus"


def promtool(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Never raises for an exit status. Raises ServerUnavailable where it cannot be installed."""
    return subprocess.run(
        [_binary("promtool"), *(str(argument) for argument in arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _binary(name: str) -> str:
    if shutil.which(name) is None:
        apt_install(PACKAGE)
    return shutil.which(name) or name


class QueryRefused(Exception):
    """Prometheus did not take a query; its own words."""


class Prometheus(Server):
    """Scrapes with the configuration it is given; `restart` keeps what it has."""

    name = "prometheus"

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self._port = free_port()
        self._configuration = configuration

    @property
    def version(self) -> str:
        return promtool("--version").stdout.splitlines()[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        binary = _binary("prometheus")
        config = self.folder / "prometheus.yml"
        config.write_text(json.dumps(self._configuration), encoding="utf-8")  # JSON is YAML
        self.spawn(
            self.name,
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
                "--log.level=warn",
            ],
        )
        self.wait_until(self._ready)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query. Raises QueryRefused."""
        answer = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def targets(self) -> list[dict[str, Any]]:
        """As `/api/v1/targets` shows the active ones."""
        found: list[dict[str, Any]] = self._get("/api/v1/targets?state=active")["data"]["activeTargets"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that is loaded."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as answer:  # noqa: S310 - our own server
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise QueryRefused(error.read().decode(errors="replace")) from None
        return found

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):  # noqa: S310 - our own server
                return True
        except OSError:
            return False
