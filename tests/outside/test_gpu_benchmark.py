"""The benchmark of GPU nodes runs as far as a machine without one goes, and says what it left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from isocenter.gpu_stager.modes.probe import probe

ROOT = Path(__file__).resolve().parents[2]
CHOSEN = ["B1", "B3", "B10", "B13", "B14", "B15"]


def test_it_records_the_node_and_what_could_not_be_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = ["--quick", "--only", ",".join(CHOSEN), "--scratch", str(tmp_path), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.run", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert CHOSEN == list(result["measured"])
    assert {"disk", "memcpy"} <= result["base_GB_per_s"].keys()
    assert result["node"]["scratch"]["type"]
    assert result["measured"]["B3"]["GB/s"] > 0
    assert "VRAM" in result["measured"]["B10"]["not_measured"]
    on_device = probe(tmp_path).mode.on_device
    assert on_device == ("not_measured" not in result["measured"]["B15"])
    assert not any("error" in one for one in result["measured"].values())
