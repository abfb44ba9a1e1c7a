"""A site that is built once and copied for each test."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from tests.migrate.building import build, embedded

from isocenter.cli.migration.sides import Side


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
