"""Real DICOM files from installed packages: no download, no network."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pydicom
import pytest

from isocenter.common.dicom.header import HeaderScanner
from isocenter.common.dicom.part10 import Part10Splitter
from isocenter.common.errors import InvalidInstance


def package_files() -> list[Path]:
    """Every file of pydicom and pydicom-data that could be DICOM (file-set members have no suffix)."""
    larger = find_spec("data_store")
    assert larger is not None
    assert larger.origin is not None
    roots = [Path(pydicom.__file__).parent / "data", Path(larger.origin).parent / "data"]
    candidates = (path for root in roots for path in root.rglob("*") if path.is_file())
    skipped = {".py", ".pyc", ".json", ".txt", ".md", ".zip", ".npy", ".tar", ".jpg", ".license", ".toml"}
    return sorted(path for path in candidates if path.suffix.lower() not in skipped)


@cache
def accepted_files() -> list[Path]:
    """Those of them that ingest would take."""
    accepted = []
    for path in package_files():
        splitter = Part10Splitter()
        try:
            data_set = splitter.feed(path.read_bytes())
            if splitter.meta is not None:
                scanner = HeaderScanner(splitter.meta.transfer_syntax_uid)
                scanner.feed(data_set)
                scanner.finish()
                accepted.append(path)
        except InvalidInstance:
            continue
    return accepted


@pytest.fixture
def some_accepted_files() -> list[Path]:
    """A dozen of them, always the same."""
    return random.Random(4).sample(accepted_files(), 12)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sources: dict[str, Callable[[], list[Path]]] = {
        "dicom_path": package_files,
        "accepted_path": accepted_files,
        "refused_path": lambda: sorted(set(package_files()) - set(accepted_files())),
    }
    for fixture, find in sources.items():
        if fixture in metafunc.fixturenames:
            paths = find()
            metafunc.parametrize(fixture, paths, ids=["/".join(path.parts[-3:]) for path in paths])
