"""Kubernetes kills a pod only after the longest stop that is still in order."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml
from testbed.server import free_port
from tests.kubernetes.chart import CHART, Rendered
from tests.kubernetes.test_settings import NOT_YET, settings_of

STAGES = 2
"""Requests in hand, then the service's own drain: one after the other in `isocenter.common.runtime`."""
DRAIN_SECONDS = 2.0
STUBBORN = Path(__file__).with_name("stubborn.py")


def _drain(rendered: Rendered, component: str, container: dict[str, object], field: str) -> float:
    """In force: the pod's environment, else the default of the code."""
    [pod] = [pod for pod in rendered.served if pod.component == component]
    settings = settings_of(component)
    given = rendered.environment(pod, container).get(settings.variable(field))
    return float(settings.model_fields[field].default if given is None else given)


def test_the_grace_period_is_longer_than_the_drain(rendered: Rendered) -> None:
    for pod in rendered.served:
        if pod.component in NOT_YET:
            continue
        [container] = pod.spec["containers"]
        drain = _drain(rendered, pod.component, container, "drain_seconds")
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        margin = pod.spec["terminationGracePeriodSeconds"] - before - STAGES * drain

        assert before >= 1, "endpoints forget a pod only after it began to stop"
        assert margin >= 10


def test_associations_drain_inside_the_drain(rendered: Rendered) -> None:
    for pod in rendered.served:
        if pod.component == "ingest":
            [container] = pod.spec["containers"]
            associations = _drain(rendered, "ingest", container, "association_drain_seconds")

            assert associations < _drain(rendered, "ingest", container, "drain_seconds")


def test_the_longest_stop_of_a_process_fits(tmp_path: Path) -> None:
    """A request that never ends, a service that never stops, a collector that never answers: a stop has two
    stages of one drain each, and what comes after them fits into the chart's margin.
    """
    margin = yaml.safe_load((CHART / "values.yaml").read_text())["defaults"]["shutdownMarginSeconds"]
    health, port = free_port(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as collector:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ISOCENTER_")},
            "ISOCENTER_DATA_DIR": str(tmp_path / "data"),
            "ISOCENTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.getsockname()[1]}",
            "ISOCENTER_STUBBORN_HTTP_PORT": str(port),
            "ISOCENTER_STUBBORN_HEALTH_PORT": str(health),
            "ISOCENTER_STUBBORN_DRAIN_SECONDS": str(DRAIN_SECONDS),
        }
        with (
            (tmp_path / "out").open("wb") as out,
            subprocess.Popen([sys.executable, STUBBORN], env=environment, stdout=out, stderr=out) as process,
        ):
            try:
                _wait_until_ready(health, process)
                with socket.create_connection(("127.0.0.1", port)) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: stubborn\r\n\r\n")
                    assert client.recv(64).startswith(b"HTTP/1.1 200"), "the request is in hand"
                    began = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                    status = process.wait(timeout=STAGES * DRAIN_SECONDS + margin + 30)
                    took = time.monotonic() - began
            finally:
                process.kill()

    assert 0 == status, (tmp_path / "out").read_text()
    assert took > (STAGES - 1) * DRAIN_SECONDS + 1, (
        "the stages come one after another: one drain is not enough"
    )
    assert took < math.ceil(STAGES * DRAIN_SECONDS) + margin


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError("the service did not become ready")
