"""Docker for tests: the engine that answers, or one of our own, started and put away again.

    python -m testbed.docker images      # stand-ins, where no registry answers, and the product's images

An engine of our own listens on a socket of its own, so that no other test run takes it for the machine's, and
keeps its images in the test bed's cache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from testbed.cache import CACHE
from testbed.server import ServerUnavailable

REPOSITORY = Path(__file__).resolve().parents[1]
SERVICES = ("ingest", "indexer", "gateway", "cli")
TAG = "0.1.0"
PYTHON_IMAGE = "python:3.13-slim-trixie"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
PULL_SECONDS = 30.0
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True, slots=True)
class Docker:
    """A Docker engine, and its command line."""

    host: str | None = None
    """`DOCKER_HOST`; None: the machine's."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, *arguments: str | Path, check: bool = True, seconds: float = 600, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `docker ARGUMENTS`.

        Raises:
            RuntimeError: another exit status than 0, with the end of what was printed.
        """
        done = subprocess.run(
            ["docker", *map(str, arguments)],
            cwd=REPOSITORY,
            env=self._environment(),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"docker {' '.join(map(str, arguments))}: {(done.stdout + done.stderr)[-3000:]}"
            )
        return done

    def answers(self) -> bool:
        try:
            done = self("info", "--format", "{{.ServerVersion}}", check=False, seconds=20)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0 and bool(done.stdout.strip())

    def has(self, image: str) -> bool:
        return self("image", "inspect", image, check=False).returncode == 0

    def pulls(self, image: str) -> bool:
        """Whether a registry answers with it, soon."""
        try:
            return self("pull", "--quiet", image, check=False, seconds=PULL_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _environment(self) -> dict[str, str]:
        ours = {"DOCKER_BUILDKIT": "1", "COMPOSE_ANSI": "never", "BUILDKIT_PROGRESS": "plain"}
        host = {} if self.host is None else {"DOCKER_HOST": self.host}
        return {**os.environ, **ours, **host, **self.environment}


@contextlib.contextmanager
def docker() -> Iterator[Docker]:
    """Yields an engine that answers, with `compose` and `buildx`.

    Raises:
        ServerUnavailable: none answers, and none can be started.
    """
    machine = Docker()
    if machine.answers():
        _need_plugins(machine)
        yield machine
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise ServerUnavailable(
            "no Docker engine answers; scripts/install_docker.sh brings one, and starts none"
        )
    with _network_restored(), _engine() as own:
        _need_plugins(own)
        yield own


def _need_plugins(engine: Docker) -> None:
    for plugin in ("compose", "buildx"):
        if engine(plugin, "version", check=False).returncode:
            raise ServerUnavailable(f"`docker {plugin}` is missing; scripts/install_docker.sh brings it")


@contextlib.contextmanager
def _engine() -> Iterator[Docker]:
    """Dockerd of our own. Its sockets are in a short folder: their paths have at most 107 bytes."""
    run = Path(tempfile.mkdtemp(prefix="dockerd-"))
    data = CACHE / "docker"
    data.mkdir(parents=True, exist_ok=True)
    host = f"unix://{run}/docker.sock"
    command = [
        "dockerd", f"--host={host}", f"--data-root={data}", f"--exec-root={run}/exec",
        f"--pidfile={run}/docker.pid", "--log-level=warn",
    ]  # fmt: skip
    with (run / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    engine = Docker(host)
    try:
        until = time.monotonic() + START_SECONDS
        while not engine.answers():
            if process.poll() is not None or time.monotonic() > until:
                tail = (run / "log").read_text(errors="backslashreplace")[-2000:]
                raise ServerUnavailable(f"dockerd does not start here: {tail}")
            time.sleep(0.1)
        yield engine
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(run, ignore_errors=True)


@contextlib.contextmanager
def _network_restored() -> Iterator[None]:
    """Packet filter, bridges and forwarding of this machine are afterwards what they were."""
    rules = _output("iptables-save")
    bridges, forward = _bridges(), _FORWARD.read_text()
    try:
        yield
    finally:
        for bridge in _bridges() - bridges:
            subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False)
        if rules is not None:
            _flush_then_restore(rules)
        _FORWARD.write_text(forward)


def _flush_then_restore(rules: str) -> None:
    """`iptables-restore` leaves tables alone that it is not told of: empty ones are named first."""
    named = {line[1:] for line in rules.splitlines() if line.startswith("*")}
    for table in {"filter", "nat"} - named:
        for action in ("--flush", "--delete-chain"):
            subprocess.run(["iptables", "--table", table, action], capture_output=True, check=False)
        for chain in ("FORWARD",) if table == "filter" else ():
            subprocess.run(["iptables", "--policy", chain, "ACCEPT"], capture_output=True, check=False)
    subprocess.run(["iptables-restore"], input=rules, text=True, capture_output=True, check=False)


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _bridges() -> set[str]:
    return {
        path.parent.name
        for path in Path("/sys/class/net").glob("*/bridge")
        if path.parent.name == "docker0" or path.parent.name.startswith("br-")
    }


def build_services(engine: Docker, services: Sequence[str] = SERVICES) -> None:
    """The product's images as `deploy/compose.yaml` names them.

    Raises:
        RuntimeError: with the end of what the build printed.
    """
    revision = _output("git", "-C", str(REPOSITORY), "rev-parse", "HEAD") or "unknown"
    authorities = os.environ.get("SSL_CERT_FILE")
    secret = (
        [f"--secret=id=ca_bundle,src={authorities}"] if authorities and Path(authorities).is_file() else []
    )

    def build(service: str) -> None:
        engine(
            "buildx", "build", "--file=deploy/Dockerfile", f"--tag=isocenter-{service}:{TAG}", *secret,
            f"--build-arg=SERVICE={service}", f"--build-arg=VERSION={TAG}",
            f"--build-arg=REVISION={revision.strip()}", ".",
        )  # fmt: skip

    # The first build fills the layers and caches that the others share.
    build(services[0])
    with ThreadPoolExecutor() as pool:
        list(pool.map(build, services[1:]))


def main(arguments: Sequence[str]) -> int:
    from testbed import stand_ins  # noqa: PLC0415 - it builds on this file

    if list(arguments) != ["images"]:
        print("usage: python -m testbed.docker images")
        return 2
    began = time.monotonic()
    try:
        with docker() as engine:
            print(stand_ins.provide(engine), flush=True)
            build_services(engine)
    except ServerUnavailable as error:
        print(error)
        return 1
    print(f"images are here ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
