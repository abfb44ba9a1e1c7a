"""The README's commands do what a newcomer reads there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.embedded import Embedded
from tests.flows.helpers import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^<!-- test -->\n+```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^make ([a-z-]+)", re.MULTILINE)


def blocks(text: str) -> list[str]:
    """Fenced `sh` blocks that stand after `<!-- test -->`."""
    return MARK.findall(text)


def test_every_marked_block_runs(tmp_path: Path) -> None:
    """In one folder, one after the other, beside a platform that runs."""
    found = blocks((ROOT / "README.md").read_text())
    with Embedded(tmp_path / "platform", ENVIRONMENT) as platform:
        work = tmp_path / "work"
        work.mkdir()
        for block in found:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=work,
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "ISOCENTER_DATA_DIR": str(platform.data_dir),
                },
                timeout=240,
                check=False,
            )
            assert 0 == done.returncode, f"{block}\n{done.stdout}{done.stderr}"
    assert found


def test_every_make_target_it_names_exists() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    named = {
        target
        for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
        for target in TARGET.findall(block)
    }

    assert named
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!-- test -->\n```sh\nls\n```\n", ["ls\n"]),
        ("<!-- test -->\n\n```sh\na\nb\n```\n```sh\nc\n```\n", ["a\nb\n"]),
        ("```sh\nls\n```\n", []),
    ],
)
def test_only_marked_blocks_count(text: str, expected: list[str]) -> None:
    assert expected == blocks(text)
