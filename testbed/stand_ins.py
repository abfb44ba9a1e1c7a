"""Base and engine images for `deploy/compose.yaml` where no image registry answers: `deploy/stand-ins`.

They bear the very names that the compose file uses, so that it runs as it is shipped. What cannot be made
here is in `MISSING`: Grafana.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from testbed import kafka, mongo
from testbed.cache import CACHE, apt_install, building
from testbed.docker import PYTHON_IMAGE, REPOSITORY, Docker
from testbed.server import ServerUnavailable

RECIPES = REPOSITORY / "deploy" / "stand-ins"
BASE = "debian:trixie-slim"
MIRROR = "http://deb.debian.org/debian"
IMAGES = {
    "python": PYTHON_IMAGE,
    "kafka": "apache/kafka:4.4.0",
    "mongo": "mongo:6.0.5",
    "ceph": "quay.io/ceph/ceph:v18.2.7",
    "prometheus": "prom/prometheus:v2.53.3",
    "haproxy": "haproxy:3.0",
    "jaeger": "jaegertracing/jaeger:2.2.0",
    "otel": "otel/opentelemetry-collector:0.116.0",
}
"""Target of deploy/stand-ins/Dockerfile -> the name it is tagged with."""
MISSING = {"grafana": "grafana/grafana:11.6.0"}
NEED_GO = ("jaeger", "otel")
JAEGER = "jaeger-1.65.0"


@dataclass(frozen=True, slots=True)
class Provided:
    """What there is to run the compose file with."""

    real: bool
    """From a registry; else made here."""
    absent: dict[str, str]
    """Name of an image -> why it is not there."""
    seconds: float

    def __str__(self) -> str:
        kind = (
            "from registries"
            if self.real
            else "STAND-INS MADE HERE from package registries, not the real images"
        )
        lines = [f"images: {kind} ({self.seconds:.0f} s)"]
        lines += [f"images: !!! {image} is NOT here: {why} !!!" for image, why in self.absent.items()]
        return "\n".join(lines)


def provide(engine: Docker) -> Provided:
    """Every image of the compose file that can be had.

    Raises:
        ServerUnavailable: neither a registry nor Debian's packages can be reached.
    """
    began = time.monotonic()
    if not engine.has(BASE) and engine.pulls(PYTHON_IMAGE):
        absent = {
            image: "the registry does not give it"
            for image in (*IMAGES.values(), *MISSING.values())
            if not engine.pulls(image)
        }
        return Provided(real=True, absent=absent, seconds=time.monotonic() - began)
    absent = dict.fromkeys(MISSING.values(), "no registry answers, and no package registry has it: not run")
    with ThreadPoolExecutor() as pool:
        jaeger = pool.submit(build_jaeger)
        jars = pool.submit(kafka.install)
        mongod = pool.submit(mongo.install)
        if not engine.has(BASE):
            engine("import", root_file_system(), BASE)
        context = _context("all", kafka_jars=jars.result(), mongod=mongod.result())
        plain = [target for target in IMAGES if target not in NEED_GO]
        builds = [pool.submit(_build, engine, target, context) for target in plain]
        try:
            with_jaeger = _context("jaeger", jaeger=jaeger.result())
            builds += [pool.submit(_build, engine, target, with_jaeger) for target in NEED_GO]
        except ServerUnavailable as error:
            absent |= {IMAGES[target]: str(error) for target in NEED_GO}
        _finish(builds)
    return Provided(real=False, absent=absent, seconds=time.monotonic() - began)


def _finish(builds: list[Future[None]]) -> None:
    for build in builds:
        build.result()


def root_file_system() -> Path:
    """Debian 13, minimal, as a tarball; about 20 s once.

    Raises:
        ServerUnavailable: no Debian, not root, or its mirror cannot be reached.
    """
    apt_install("mmdebstrap", "debian-archive-keyring")
    with building("debian-trixie") as folder:
        if folder is not None:
            done = subprocess.run(
                [
                    "mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates",
                    "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
                    "--dpkgopt=path-exclude=/usr/share/doc/*",
                    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                    "trixie", folder / "root.tar", MIRROR,
                ],
                capture_output=True,
                text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                raise ServerUnavailable(f"mmdebstrap cannot make Debian 13: {done.stderr[-600:]}")
    return CACHE / "debian-trixie" / "root.tar"


def build_jaeger() -> Path:
    """Jaeger 2 from the Go module proxy, checked against the committed go.sum; two to five minutes once.

    Raises:
        ServerUnavailable: no Go here, or a module cannot be had.
    """
    go = shutil.which("go") or "/usr/local/go/bin/go"
    with building(JAEGER) as folder:
        if folder is not None:
            if not Path(go).exists():
                raise ServerUnavailable("needs Go to build Jaeger")
            done = subprocess.run(
                [
                    # Without optimisation: a third less to wait for, and no test measures it.
                    go, "build", "-mod=readonly", "-trimpath", "-gcflags=all=-N -l", "-ldflags=-s -w",
                    "-o", folder / "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger",
                ],
                cwd=RECIPES / "jaeger",
                env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
                capture_output=True,
                text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                raise ServerUnavailable(f"Jaeger cannot be built: {done.stderr[-600:]}")
    return CACHE / JAEGER / "jaeger"


def _context(name: str, **parts: Path) -> Path:
    """A build context: hard links, no copies, of what the recipes take from it."""
    context = CACHE / "stand-ins" / name
    shutil.rmtree(context, ignore_errors=True)
    (context / "kafka").mkdir(parents=True)
    (context / "jaeger").mkdir()
    shutil.copy(RECIPES / "kafka" / "run.sh", context / "kafka")
    for part, source in parts.items():
        if part == "kafka_jars":
            shutil.copytree(source, context / "kafka" / "jars", copy_function=os.link)
        elif part == "jaeger":
            os.link(source, context / "jaeger" / "jaeger")
        else:
            os.link(source, context / part)
    return context


def _build(engine: Docker, target: str, context: Path) -> None:
    recipe = RECIPES / "Dockerfile"
    engine("buildx", "build", "--file", recipe, "--target", target, "--tag", IMAGES[target], context)
