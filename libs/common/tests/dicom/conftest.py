"""Real DICOM files from installed packages: no download, no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pydicom
import pytest


def package_files() -> list[Path]:
    """Every file of pydicom and pydicom-data that could be DICOM (file-set members have no suffix)."""
    larger = find_spec("data_store")
    assert larger is not None
    assert larger.origin is not None
    roots = [Path(pydicom.__file__).parent / "data", Path(larger.origin).parent / "data"]
    candidates = (path for root in roots for path in root.rglob("*") if path.is_file())
    skipped = {".py", ".pyc", ".json", ".txt", ".md", ".zip", ".npy", ".tar", ".jpg", ".license", ".toml"}
    return sorted(path for path in candidates if path.suffix.lower() not in skipped)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dicom_path" in metafunc.fixturenames:
        paths = package_files()
        metafunc.parametrize("dicom_path", paths, ids=["/".join(path.parts[-3:]) for path in paths])
