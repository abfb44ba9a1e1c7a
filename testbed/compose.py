"""The shipped compose file on an engine of Docker: for tests, and for `make cluster-up` and its kin.

python -m testbed.compose up|down|demo
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.retrieve import ANY_SYNTAX, parts

from testbed import stand_ins
from testbed.cluster import get
from testbed.docker import REPOSITORY, Docker, build_services
from testbed.server import ServerUnavailable

FILE = REPOSITORY / "deploy" / "compose.yaml"
PREPARE = REPOSITORY / "deploy" / "compose" / "prepare.py"
UP_SECONDS = 300
DASHBOARDS = "grafana/grafana:11.6.0"
_ASK = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=30).read().decode())"
DICOM_PORT, STOW_PORT, HTTP_PORT, GRAFANA_PORT = 11112, 8081, 8080, 3000


@dataclass(frozen=True, slots=True)
class Compose:
    """One project of the compose file."""

    engine: Docker
    project: str = "isocenter"
    env_file: Path = REPOSITORY / "deploy" / ".env"
    profiles: Sequence[str] = ()
    ports: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, *arguments: str | Path, check: bool = True, seconds: float = UP_SECONDS) -> str:
        """What `docker compose ARGUMENTS` prints. Raises RuntimeError for another exit status than 0."""
        chosen = [f"--profile={profile}" for profile in self.profiles]
        done = self.engine(
            "compose", f"--project-name={self.project}", f"--file={FILE}", f"--env-file={self.env_file}",
            *chosen, *arguments, check=check, seconds=seconds,
        )  # fmt: skip
        return done.stdout

    def up(self) -> None:
        """Starts everything and waits until it is ready. Raises RuntimeError with what did not come up."""
        try:
            self("up", "--detach", "--wait", f"--wait-timeout={UP_SECONDS}", "--quiet-pull")
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.report()}") from None

    def down(self) -> None:
        """Removes containers, networks and volumes: all data."""
        self("--profile=*", "down", "--volumes", "--remove-orphans", "--timeout=10", check=False)

    def cli(self, *arguments: str | Path) -> str:
        """`isocenter ARGUMENTS`, inside: it reaches the engines and the trace store."""
        return self("run", "--rm", "--no-TTY", "--no-deps", "cli", *arguments)

    def ask(self, url: str) -> Any:
        """JSON that a service inside answers with: its port is not published."""
        said = self(
            "run", "--rm", "--no-TTY", "--no-deps", "--entrypoint=python", "cli", "-c", _ASK, url
        )  # fmt: skip
        return json.loads(said)

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """Name, Service, State and Health of each, stopped ones too."""
        said = self("ps", "--all", "--format=json", *([service] if service else []))
        return [json.loads(line) for line in said.splitlines() if line.strip()]

    def report(self, lines: int = 15) -> str:
        """State of all containers, and the end of the log of those that are not well."""
        rows = self.containers()
        said = [f"{row['Name']}: {row['State']} {row['Health']} ({row['ExitCode']})" for row in rows]
        for row in rows:
            ill = (
                row["Health"] == "unhealthy" or row["State"] in {"restarting", "dead"} or row["ExitCode"] > 0
            )
            if ill:
                log = self.engine("logs", f"--tail={lines}", str(row["Name"]), check=False)
                said.append(f"--- {row['Name']}\n{(log.stdout + log.stderr)[-2500:]}")
        return "\n".join(said)

    def port(self, name: str, default: int) -> int:
        return self.ports.get(name, default)

    @property
    def dicom(self) -> str:
        return f"127.0.0.1:{self.port('ISOCENTER_DICOM_PORT', DICOM_PORT)}"

    def get(self, path: str, accept: str = "application/dicom+json") -> tuple[int, dict[str, str], bytes]:
        """Asks the gateway through its published port."""
        return get(self.port("ISOCENTER_HTTP_PORT", HTTP_PORT), f"/dicom-web{path}", accept)

    def instances(self, study: str, *, at_least: int, seconds: float = 60.0) -> list[bytes]:
        """The study's Part 10 streams; asks until there are enough.

        Raises:
            TimeoutError: there never were.
        """
        deadline = time.monotonic() + seconds
        while True:
            status, headers, body = self.get(f"/studies/{study}", ANY_SYNTAX)
            found = parts(headers, body) if status == 200 else []
            if len(found) >= at_least:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"answered {status} with {len(found)} instances of {at_least}")
            time.sleep(0.2)


def prepare(folder: Path | None = None) -> None:
    """Secrets and `.env`. Raises CalledProcessError."""
    command = [sys.executable, str(PREPARE), *([str(folder)] if folder else [])]
    subprocess.run(command, check=True)


def send(compose: Compose, folder: Path) -> str:
    """C-STORE through the published port. Raises RuntimeError when something was refused."""
    to = ("--to", compose.dicom, "--aet", "ISOCENTER")
    done = subprocess.run(
        [sys.executable, "-m", "isocenter.cli", "send", str(folder), *to],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"send: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def up(compose: Compose) -> Compose:
    """Images, secrets, and the whole platform; Grafana where its image can be had."""
    provided = stand_ins.provide(compose.engine)
    print(provided, flush=True)
    build_services(compose.engine)
    prepare()
    if DASHBOARDS not in provided.absent:
        compose = Compose(compose.engine, profiles=("dashboards",))
    compose.up()
    print(f"DICOM    ISOCENTER@{compose.dicom}")
    print(f"STOW-RS  http://127.0.0.1:{STOW_PORT}")
    print(f"DICOMweb http://127.0.0.1:{HTTP_PORT}/dicom-web")
    if compose.profiles:
        print(f"Grafana  http://127.0.0.1:{GRAFANA_PORT} (admin, deploy/.secrets/grafana_admin_password)")
    return compose


def demo(compose: Compose) -> None:
    """A synthesised CT in over DICOM, out over DICOMweb, compared, and its trace."""
    from pydicom import dcmread  # noqa: PLC0415 - only the demo needs it

    from isocenter.cli.synth import write_ct  # noqa: PLC0415

    compose = up(compose)
    with tempfile.TemporaryDirectory() as name:
        files = write_ct(Path(name), slices=24, seed=time.time_ns() % 100_000)
        study = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
        print(send(compose, Path(name)))
        returned = compose.instances(study, at_least=len(files))
        same = sorted(data_set(content) for content in returned) == sorted(
            data_set(path.read_bytes()) for path in files
        )
    print(f"{len(returned)} instances came back over DICOMweb, data sets {'equal' if same else 'DIFFERENT'}")
    print(compose.cli("trace", study))


def data_set(part10: bytes) -> bytes:
    """What follows the file meta information (PS3.10 section 7.1), which each receiver writes for itself."""
    length = int.from_bytes(part10[140:144], "little")
    return part10[144 + length :]


def main(arguments: Sequence[str]) -> int:
    compose = Compose(Docker())
    actions: dict[str, Callable[[Compose], object]] = {
        "up": up,
        "demo": demo,
        "down": lambda one: one("--profile=*", "down"),
    }
    if len(arguments) != 1 or arguments[0] not in actions:
        print("usage: python -m testbed.compose up|down|demo")
        return 2
    if not compose.engine.answers():
        print("Docker does not answer; scripts/install_docker.sh installs it on Debian, dockerd starts it")
        return 1
    try:
        actions[arguments[0]](compose)
    except (RuntimeError, ServerUnavailable) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
