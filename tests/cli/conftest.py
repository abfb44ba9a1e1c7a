"""Files to send."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest


@pytest.fixture(scope="session")
def package() -> Path:
    """The test files of the pydicom package."""
    return Path(pydicom.__file__).parent / "data" / "test_files"
