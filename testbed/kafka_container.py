"""Apache Kafka's own image, on a fixed port of this machine."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.containers import can_get
from testbed.kafka import CLUSTER_ID, IMAGE, SETTINGS, VERSION, KafkaServer, takes_requests

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

INSIDE = 9092


class KafkaContainer(KafkaServer):
    """The data stays in the container's file system across `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._container: DockerContainer | None = None

    @property
    def version(self) -> str:
        return f"Apache Kafka {VERSION} (container)"

    def start(self) -> None:
        if self._container is None:
            self._container = self._make()
            self._container.start()
        else:
            self._container.get_wrapped_container().start()
        self.wait_until(functools.partial(takes_requests, self.bootstrap))

    def stop(self) -> None:
        if self._container is not None:
            self._container.get_wrapped_container().stop(timeout=20)

    def kill(self) -> None:
        if self._container is not None:
            with contextlib.suppress(Exception):  # it is not running
                self._container.get_wrapped_container().kill()

    def discard(self) -> None:
        if self._container is not None:
            self._container.get_wrapped_container().remove(force=True, v=True)
            self._container = None

    def pause(self) -> None:
        if self._container is not None:
            self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        if self._container is not None:
            self._container.get_wrapped_container().unpause()

    @property
    def alive(self) -> bool:
        if self._container is None:
            return False
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        return bool(wrapped.status == "running")

    def log_tail(self, lines: int = 40) -> str:
        if self._container is None:
            return ""
        return str(self._container.get_wrapped_container().logs(tail=lines).decode(errors="backslashreplace"))

    def _make(self) -> DockerContainer:
        from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - only where Docker is
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415

        # Its helper that clears up after a killed run; without it `discard` still does after others.
        testcontainers_config.ryuk_disabled = not can_get(testcontainers_config.ryuk_image)
        settings = {
            **SETTINGS,
            "listeners": f"PLAINTEXT://:{INSIDE},CONTROLLER://:9093",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.quorum.voters": "1@127.0.0.1:9093",
        }
        made = DockerContainer(IMAGE).with_bind_ports(INSIDE, self.port).with_env("CLUSTER_ID", CLUSTER_ID)
        for name, value in settings.items():
            made = made.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
        return made
