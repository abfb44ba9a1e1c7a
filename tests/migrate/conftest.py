"""A site that is built once and copied for each test."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.migrate.building import build, embedded
from tests.migrate.killing import Driver

from isocenter.cli.migration.sides import Side

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrate") / "site"
    asyncio.run(build(embedded(folder)))
    return folder


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Side:
    """Four studies, three of them settled; no work in hand."""
    folder = tmp_path / "source"
    shutil.copytree(template, folder)
    return embedded(folder)


@pytest.fixture
def target(tmp_path: Path) -> Side:
    """A folder that is not there yet."""
    return embedded(tmp_path / "target")


@pytest.fixture(scope="session")
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.migrate.driver"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.fixture
def driver(process: subprocess.Popen[str], source: Side, target: Side) -> Driver:
    return Driver(process, source, target)
