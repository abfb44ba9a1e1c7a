"""A site that has received real studies, and files to send."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from benchmarks.embedded import Embedded
from tests.flows.helpers import ENVIRONMENT, isocenter_json, settled

from isocenter.cli.synth import write_ct

PACKAGE = Path(pydicom.__file__).parent / "data"


@pytest.fixture(scope="session")
def ct(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve slices of the synthesised CT: one study, one series."""
    return write_ct(tmp_path_factory.mktemp("ct"), slices=12, seed=1)


@dataclass(frozen=True)
class Stopped:
    """A platform's root folder (as `Embedded` takes it) after a clean stop, and what was stored in it."""

    root: Path
    studies: tuple[str, ...]

    @property
    def data_dir(self) -> Path:
        return self.root / "data"


@pytest.fixture(scope="session")
def _filled(tmp_path_factory: pytest.TempPathFactory, ct: list[Path]) -> Stopped:
    root = tmp_path_factory.mktemp("filled")
    with Embedded(root, ENVIRONMENT) as platform:
        sent = isocenter_json("send", ct[0].parent, data_dir=platform.data_dir)
        more = isocenter_json(
            "send", "--stow", PACKAGE / "test_files", "--allow-refused", data_dir=platform.data_dir
        )
        studies = {*sent["studies"], *more["studies"]}
        settled(platform.data_dir, studies)
    return Stopped(root, tuple(sorted(studies)))


@pytest.fixture
def site(_filled: Stopped, tmp_path: Path) -> Stopped:
    """A copy for this test alone: settled studies of many modalities, with conflicts, and no platform."""
    root = tmp_path / "site"
    shutil.copytree(_filled.root, root)
    return Stopped(root, _filled.studies)


@pytest.fixture
def start() -> Callable[[Stopped], Embedded]:
    """The platform on a stopped site: `with start(site) as platform`."""
    return lambda stopped: Embedded(stopped.root, ENVIRONMENT)
