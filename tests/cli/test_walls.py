from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("check_walls", ROOT / "scripts" / "check_walls.py")
assert _spec is not None
assert _spec.loader is not None
check_walls = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_walls)


@pytest.mark.parametrize(
    ("code", "crosses"),
    [
        ("from isocenter.common.errors import NotFound", False),
        ("import isocenter.ingest.domain", False),
        ("import pydicom", False),
        ("from isocenter.gateway import app", True),
        ("from isocenter import gateway", True),
        ("import isocenter.gateway.app as other", True),
        ("def f():\n    from isocenter.cli import main", True),
        ("if TYPE_CHECKING:\n    from isocenter.gateway.app import Gateway", True),
    ],
)
def test_an_import_that_crosses_a_wall_is_found(tmp_path: Path, code: str, crosses: bool) -> None:
    source = tmp_path / "services" / "ingest" / "src" / "isocenter" / "ingest"
    source.mkdir(parents=True)
    (source / "module.py").write_text(code)

    assert crosses == bool(list(check_walls.breaches(tmp_path, ["ingest"])))


def test_the_common_library_imports_no_service(tmp_path: Path) -> None:
    source = tmp_path / "libs" / "common" / "src" / "isocenter" / "common"
    source.mkdir(parents=True)
    (source / "module.py").write_text("from isocenter.ingest import app")

    (breach,) = check_walls.breaches(tmp_path, [])

    assert "libs/common/src/isocenter/common/module.py:1" in breach


def test_this_repository_keeps_its_walls() -> None:
    services = [path.name for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists()]

    assert {"gateway", "indexer", "ingest"} <= set(services)
    assert [] == list(check_walls.breaches(ROOT, services))
