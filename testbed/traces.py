"""A trace store, and the collector in front of it.

Both are Jaeger's binary with a configuration of its own each: Jaeger 2 is a distribution of the OpenTelemetry
Collector. It is built as for the images of the test bed, and kept: two to five minutes once.
"""

from __future__ import annotations

import http.client
import os
import subprocess
from pathlib import Path

import yaml

from testbed.server import Server, answers, free_port
from testbed.stand_ins import IMAGES, build_jaeger

RELEASE = IMAGES["jaeger"].rpartition(":")[2]


class TraceStore(Server):
    """Keeps traces in memory: they are gone when it is."""

    name = "jaeger"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._otlp_port, self._query_port, self._grpc_port = free_port(), free_port(), free_port()
        self._config = folder / "jaeger.yaml"

    @property
    def version(self) -> str:
        return f"Jaeger {RELEASE} (native, memory)"

    @property
    def otlp(self) -> str:
        """For `ISOCENTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._otlp_port}"

    @property
    def query(self) -> str:
        """For `ISOCENTER_TRACE_STORE_URL`."""
        return f"http://127.0.0.1:{self._query_port}"

    def start(self) -> None:
        binary = build_jaeger()
        self._config.write_text(yaml.safe_dump(self._configuration()), encoding="utf-8")
        self.spawn(self.name, [binary, "--config", self._config])
        self.wait_until(self._ready)

    def _ready(self) -> bool:
        return answers(self._otlp_port) and _status(self._query_port, "/api/services") == 200

    def _configuration(self) -> object:
        return {
            "extensions": {
                "jaeger_storage": {"backends": {"latest": {"memory": {"max_traces": 10_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "latest"},
                    "http": {"endpoint": f"127.0.0.1:{self._query_port}"},
                    "grpc": {"endpoint": f"127.0.0.1:{self._grpc_port}"},
                },
            },
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{self._otlp_port}"}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "latest"}},
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
        }


class Collector(Server):
    """An OpenTelemetry Collector with the configuration of the repository."""

    name = "collector"

    def __init__(self, folder: Path, config: Path, environment: dict[str, str]) -> None:
        super().__init__(folder)
        self._http_port, grpc_port, metrics_port = free_port(), free_port(), free_port()
        self._config = config
        self._environment = {
            "ISOCENTER_COLLECTOR_HTTP": f"127.0.0.1:{self._http_port}",
            "ISOCENTER_COLLECTOR_GRPC": f"127.0.0.1:{grpc_port}",
            "ISOCENTER_COLLECTOR_METRICS_HOST": "127.0.0.1",
            "ISOCENTER_COLLECTOR_METRICS_PORT": str(metrics_port),
            **environment,
        }

    @property
    def version(self) -> str:
        return f"OpenTelemetry Collector (Jaeger {RELEASE})"

    @property
    def otlp(self) -> str:
        return f"http://127.0.0.1:{self._http_port}"

    def check(self) -> str:
        """What the collector has against its configuration; empty: nothing."""
        done = subprocess.run(
            [build_jaeger(), "validate", f"--config=file:{self._config}"],
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stderr if done.returncode else ""

    def start(self) -> None:
        self.spawn(self.name, [build_jaeger(), f"--config=file:{self._config}"], self._environment)
        self.wait_until(lambda: answers(self._http_port))


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
