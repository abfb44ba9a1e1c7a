"""Apache Kafka, one node in KRaft mode: in a container, or native from Maven Central's artifacts on a JRE.

`python -m testbed.kafka install` downloads what a native start needs, so that a test run starts at once.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confluent_kafka.admin import AdminClient

from testbed import containers
from testbed.cache import CACHE, building, download
from testbed.jre import java
from testbed.server import Server, ServerUnavailable, free_port

VERSION = "4.4.0"
IMAGE = f"apache/kafka:{VERSION}"
LOCK = Path(__file__).with_name("kafka.lock")
CENTRAL = "https://repo1.maven.org/maven2/"
CLUSTER_ID = "aXNvY2VudGVyLXRlc3RiZQ"
"""Any 16 bytes in base64: it must stay the same for a data folder."""
MAX_MESSAGE_BYTES = 4_000_000
DOWNLOADS_AT_ONCE = 8
_SILENT = logging.getLogger("testbed.kafka.probe")
_SILENT.disabled = True

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    # As a careful operator would have it: topics are provisioned.
    "auto.create.topics.enable": "false",
    "message.max.bytes": str(MAX_MESSAGE_BYTES),
    # One node cannot replicate.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "2",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Tests wait for neither the first member's companions nor a long silence.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A broker that was killed may register again once its last session is over.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "250",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "num.network.threads": "2",
    "num.io.threads": "4",
}


class KafkaServer(Server):
    """A broker whose address stays and whose data outlives a kill; this class runs it natively."""

    name = "Apache Kafka"

    def __init__(self, folder: Path, *, heap_mb: int = 384, settings: dict[str, str] | None = None) -> None:
        super().__init__(folder)
        self.port, self._controller_port = free_port(), free_port()
        self._heap_mb = heap_mb
        self._settings = SETTINGS | (settings or {})

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        return f"Apache Kafka {VERSION} (native)"

    def start(self) -> None:
        run: list[Path | str] = [java(), *self._options(), "-cp", f"{install()}/*"]
        properties = self.folder / "server.properties"
        if not properties.exists():
            self._write(properties)
            self._format(run, properties)
        self.spawn("broker", [*run, "kafka.Kafka", properties])
        self.wait_until(functools.partial(takes_requests, self.bootstrap))

    def _options(self) -> list[str]:
        return [
            f"-Xmx{self._heap_mb}m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",  # half the CPU time of a start
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            "-Dlog4j2.level=WARN",
        ]

    def listeners(self) -> dict[str, str]:
        """Where it listens, in Kafka's names."""
        return {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
        }

    def format_options(self) -> list[str]:
        """Further arguments when the storage is formatted."""
        return []

    def _write(self, properties: Path) -> None:
        settings = {
            **self._settings,
            **self.listeners(),
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "log.dirs": str(self.folder / "data"),
        }
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _format(self, run: list[Path | str], properties: Path) -> None:
        command = [*run, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", properties]
        command += self.format_options()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            properties.unlink()
            raise RuntimeError(f"formatting Kafka's storage failed: {(done.stdout + done.stderr)[-800:]}")


def takes_requests(bootstrap: str) -> bool:
    """Whether the broker is in the metadata and the cluster has a controller."""
    settings: dict[str, str | int | float] = {"bootstrap.servers": bootstrap, "reconnect.backoff.max.ms": 100}
    try:
        metadata = AdminClient(settings, logger=_SILENT).list_topics(timeout=1)
    except Exception:  # noqa: BLE001 - KafkaException and its kin: not yet
        return False
    return bool(metadata.brokers) and metadata.controller_id >= 0


def install() -> Path:
    """The folder of jars, downloaded once, each checked against `kafka.lock`.

    Raises:
        ServerUnavailable: Maven Central cannot be reached, or an artifact is not what was pinned.
    """
    target = f"kafka-{VERSION}"
    with building(target) as scratch:
        if scratch is not None:
            wanted = [line.split() for line in LOCK.read_text().splitlines() if not line.startswith("#")]
            with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
                for done in [
                    pool.submit(download, CENTRAL + path, sha256, scratch / Path(path).name)
                    for sha256, path in wanted
                ]:
                    done.result()
    return CACHE / target


def kafka_server(folder: Path) -> KafkaServer:
    """The nearest to production that this machine can have; `version` says which it is.

    Raises:
        ServerUnavailable: there is none.
    """
    from testbed.kafka_container import KafkaContainer  # noqa: PLC0415 - it builds on this file

    way = containers.wanted()
    if way != "native" and containers.can_get(IMAGE):
        return KafkaContainer(folder)
    if way == "containers":
        raise ServerUnavailable(f"Docker does not answer here, or cannot get {IMAGE}")
    try:
        java()
        install()
    except ServerUnavailable as error:
        return _fall_back(folder, error)
    return KafkaServer(folder)


def _fall_back(folder: Path, missing: ServerUnavailable) -> KafkaServer:
    from testbed import tansu  # noqa: PLC0415

    try:
        tansu.install()
    except ServerUnavailable as error:
        raise ServerUnavailable(f"no Apache Kafka ({missing}) and no stand-in ({error})") from None
    return tansu.TansuServer(folder)


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit("usage: python -m testbed.kafka install")
    print(java(), install(), sep="\n")
