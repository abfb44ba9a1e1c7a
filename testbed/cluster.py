"""The platform as a cluster on this machine: real servers, and replicas of the services as processes.

What containers run, without the containers: `python -m isocenter.<service>` with the same variables.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from benchmarks.retrieve import ANY_SYNTAX, parts

from testbed.kafka import KafkaServer
from testbed.mongo import MongoServer
from testbed.radosgw import RadosGateway
from testbed.server import Server, free_port

READY_SECONDS = 60.0
SECRET_BYTES = 32
QUICK_SETTLING = {
    "ISOCENTER_INDEXER_QUIET_SECONDS": "3",
    "ISOCENTER_INDEXER_QUIET_AFTER_CLOSE_SECONDS": "0.3",
    "ISOCENTER_INDEXER_SETTLE_POLL_SECONDS": "0.2",
}
"""Tests wait for studies to settle."""


class Replica(Server):
    """One process of a service. Its ports stay the same across restarts."""

    def __init__(self, folder: Path, service: str, number: int, environment: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.service = service
        self.name = f"{service}-{number}"
        self.health_port = free_port()
        self.http_port = free_port()
        self.dicom_port = free_port()
        prefix = f"ISOCENTER_{service.upper()}_"
        self._environment = {
            **environment,
            "ISOCENTER_DATA_DIR": str(folder / "data"),
            "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={self.name}",
            f"{prefix}HEALTH_PORT": str(self.health_port),
            f"{prefix}HTTP_PORT": str(self.http_port),
        }
        if service == "ingest":
            self._environment[f"{prefix}DICOM_PORT"] = str(self.dicom_port)

    @property
    def version(self) -> str:
        return f"isocenter.{self.service}"

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Starts the process and does not wait."""
        self._processes.clear()
        self.spawn(self.name, [sys.executable, "-m", f"isocenter.{self.service}"], self._environment)

    def restart_with(self, **environment: str) -> None:
        """The same replica, launched with more in its environment, from now on."""
        self._environment |= environment
        self.launch()

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Returns when `/readyz` says yes. Raises RuntimeError with the end of the log."""
        self.wait_until(self.ready, seconds)

    def ready(self) -> bool:
        try:
            return self.health("/readyz")[0] == 200
        except OSError:
            return False

    def health(self, path: str) -> tuple[int, str]:
        """Status and body of `/livez`, `/readyz` or `/metrics`."""
        status, _, body = get(self.health_port, path, "*/*", timeout=5)
        return status, body.decode()

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.out"

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.pids[0]}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """Kafka, MongoDB, S3 and so many replicas of each service, in one folder.

    The engines are of this cluster alone, so that its topics hold nothing of another test.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ingest: int = 2,
        indexer: int = 2,
        gateway: int = 1,
        environment: Mapping[str, str] | None = None,
        object_store: Literal["memstore", "bluestore"] = "memstore",
    ) -> None:
        """`object_store`: with `bluestore` objects outlive a kill of the whole object store."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kafka = KafkaServer(folder / "kafka")
        self.mongo = MongoServer(folder / "mongo")
        self.s3 = RadosGateway(folder / "s3", objectstore=object_store)
        self.key_file = folder / "site.key"
        self.key_file.write_bytes(secrets.token_bytes(SECRET_BYTES))
        self.key_file.chmod(0o600)
        self.wrapping_key_file = folder / "wrap.key"
        self.wrapping_key_file.write_bytes(secrets.token_bytes(SECRET_BYTES))
        self.wrapping_key_file.chmod(0o600)
        self.bucket = f"isocenter-{secrets.token_hex(4)}"
        self.ae_title = "ISOCENTER"
        self._counts = {"ingest": ingest, "indexer": indexer, "gateway": gateway}
        self._extra = dict(environment or {})
        self._stack = ExitStack()
        self.replicas: list[Replica] = []

    def __enter__(self) -> Self:
        try:
            self.start_engines()
            self.provision()
            self.start_services()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_engines(self) -> None:
        for server in (self.kafka, self.mongo, self.s3):
            if not server.alive:
                server.start()
                self._stack.callback(server.kill)

    def provision(self) -> None:
        """Topics and bucket, as an operator makes them."""
        self.isocenter("topics", "apply")
        self.isocenter("bucket", "apply")

    def start_services(self) -> None:
        """All at once, and waits until each is ready."""
        for service, count in self._counts.items():
            for number in range(1, count + 1):
                self.add(service, number)
        for replica in self.replicas:
            replica.wait_ready()

    def add(self, service: str, number: int) -> Replica:
        """One more replica, launched and not waited for."""
        name = f"{service}-{number}"
        replica = Replica(self.folder / name, service, number, self.environment)
        self._stack.callback(replica.kill)
        self.replicas.append(replica)
        replica.launch()
        return replica

    def of(self, service: str) -> list[Replica]:
        return [replica for replica in self.replicas if replica.service == service]

    @property
    def environment(self) -> dict[str, str]:
        """What every service of this cluster and every command about it is given."""
        return {
            "ISOCENTER_KAFKA_BOOTSTRAP": self.kafka.bootstrap,
            "ISOCENTER_KAFKA_REPLICATION_FACTOR": "1",
            "ISOCENTER_KAFKA_MIN_INSYNC_REPLICAS": "1",
            "ISOCENTER_KAFKA_SESSION_TIMEOUT_MS": "6000",
            "ISOCENTER_MONGO_URI": self.mongo.uri,
            "ISOCENTER_MONGO_DATABASE": "isocenter",
            "ISOCENTER_S3_ENDPOINT": self.s3.endpoint,
            "ISOCENTER_S3_BUCKET": self.bucket,
            "ISOCENTER_S3_ACCESS_KEY": self.s3.access_key,
            "ISOCENTER_S3_SECRET_KEY": self.s3.secret_key,
            "ISOCENTER_SITE_KEY_FILE": str(self.key_file),
            "ISOCENTER_KEYS_FILE": str(self.wrapping_key_file),
            **QUICK_SETTLING,
            **self._extra,
        }

    def isocenter(
        self, *arguments: str | Path, expect: int = 0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The command line, pointed at this cluster. Raises RuntimeError for another exit status."""
        done = subprocess.run(
            [sys.executable, "-m", "isocenter.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                **self.environment,
                "ISOCENTER_DATA_DIR": str(self.folder / "cli"),
                **(environment or {}),
            },
            timeout=300,
            check=False,
        )
        if done.returncode != expect:
            raise RuntimeError(f"isocenter {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def isocenter_json(
        self, *arguments: str | Path, expect: int = 0, environment: Mapping[str, str] | None = None
    ) -> Any:
        return json.loads(self.isocenter(*arguments, "--json", expect=expect, environment=environment).stdout)

    @property
    def dicom_web(self) -> str:
        return f"http://127.0.0.1:{self.of('gateway')[0].http_port}/dicom-web"

    def get(self, path: str, accept: str = "application/dicom+json") -> tuple[int, dict[str, str], bytes]:
        """Asks the gateway: status, headers with lower-case names, body."""
        return get(self.of("gateway")[0].http_port, path, accept)

    def instances(self, path: str, *, at_least: int = 1, seconds: float = 60.0) -> list[bytes]:
        """The Part 10 streams below a study, series or instance; asks until there are enough.

        Raises:
            TimeoutError: there never were.
        """
        deadline = time.monotonic() + seconds
        while True:
            status, headers, body = self.get(path, ANY_SYNTAX)
            found = parts(headers, body) if status == 200 else []
            if len(found) >= at_least:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"answered {status} with {len(found)} instances of {at_least}")
            time.sleep(0.1)

    def logs(self) -> Iterator[Path]:
        """What the services printed."""
        for replica in self.replicas:
            if replica.log.exists():
                yield replica.log

    def close(self) -> None:
        self._stack.close()


def get(port: int, path: str, accept: str, *, timeout: float = 60.0) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
