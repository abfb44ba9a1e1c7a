"""The demo, as `make demo` runs it, with fewer slices."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.flows.helpers import isocenter

from isocenter.cli.errors import Exit


@pytest.mark.slow
def test_the_demo_proves_what_it_says(tmp_path: Path) -> None:
    done = isocenter("demo", "--directory", tmp_path / "demo", "--slices", "10", data_dir=tmp_path / "other")

    for expected in (
        "C-STORE: 10 instances stored",
        "STOW-RS: 58 instances stored",
        "42 studies settled",
        "Byte for byte equal: 46 whole files (STOW-RS), 92 data sets (C-STORE), 42 studies",
        "study.settled.v1",
        "GET /dicom-web/studies/{study}",
        "39 refused",
        "rtstruct.dcm",
        "Done in",
    ):
        assert expected in done.stdout, done.stdout
    assert not (tmp_path / "other").exists()


def test_the_demo_empties_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    done = isocenter("demo", "--directory", tmp_path, data_dir=tmp_path, expect=Exit.MISCONFIGURED)

    assert "holds other files" in done.stderr
    assert (tmp_path / "thesis.txt").exists()
