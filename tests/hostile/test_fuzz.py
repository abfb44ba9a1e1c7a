"""Seeded fuzz of `isocenter up`: damaged associations, data sets and requests, and the platform goes on.

`ISOCENTER_HOSTILE_CASES` (500 here, 100,000 in `make hostile`) says how many, `ISOCENTER_HOSTILE_SEED`
repeats a run. The seed chooses the damage; which associations are recorded depends on the senders that are
installed.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmarks.embedded import Embedded
from benchmarks.procfs import PeakMemory, resident_mb
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tests.hostile.attacks import PIXELS, Instance, element, image
from tests.hostile.fuzz.corpus import record, samples
from tests.hostile.fuzz.run import Fuzz
from tests.hostile.site import Address, multipart

CASES = int(os.environ.get("ISOCENTER_HOSTILE_CASES", "500"))
SEED = int(os.environ.get("ISOCENTER_HOSTILE_SEED", "0")) or secrets.randbits(32)
LONG = 10_000
"""From so many cases on a bar shows how far it is."""
ROUND = 500
"""Cases after which good instances are sent."""
GROWTH_MB = 512
"""Resident memory that the platform and its children may have together, beyond what they have when idle."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=@-]*|\.[a-z.-]+")


@contextmanager
def progress(total: int) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=total < LONG, transient=False) as bar:
        yield bar


def everything(root: Path, *, beside: Path) -> set[Path]:
    """Every path below `root` that is not below `beside`."""
    return {path for path in root.rglob("*") if beside not in path.parents and path != beside}


@pytest.mark.slow
@pytest.mark.timeout(240 + CASES // 10)
async def test_no_input_ends_it_fills_it_or_makes_it_write_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"\nhostile: {CASES} cases, ISOCENTER_HOSTILE_SEED={SEED}", file=sys.stderr)  # noqa: T201
    elsewhere = {name: tmp_path / name for name in ("tmp", "home", "cwd")}
    for folder in elsewhere.values():
        folder.mkdir()
    monkeypatch.chdir(elsewhere["cwd"])
    surroundings = {"TMPDIR": str(elsewhere["tmp"]), "HOME": str(elsewhere["home"])}
    began = time.monotonic()
    with Embedded(tmp_path / "platform", surroundings) as platform:
        found = samples()
        streams = await record(platform.dicom_port, found)
        before = everything(tmp_path, beside=platform.data_dir)
        rooms = {path.name for path in platform.data_dir.iterdir()}
        started_with = resident_mb(platform.pid)
        site = Neighbour(platform.dicom_port, platform.http_port)
        with progress(CASES) as bar, PeakMemory(platform.pid) as peak:
            task = bar.add_task("hostile", total=CASES)
            fuzz = Fuzz(
                seed=SEED,
                dicom_port=platform.dicom_port,
                http_port=platform.http_port,
                streams=streams,
                samples=found,
                alive=lambda: platform.running,
                done=lambda: bar.advance(task),
            )
            for start in range(0, CASES, ROUND):
                await fuzz.run(range(start, min(start + ROUND, CASES)))
                assert platform.running, f"it ended: {platform.log.read_text(errors='replace')[-4000:]}"
                assert fuzz.wrong == []
                assert resident_mb(platform.pid) - started_with < GROWTH_MB
                await site.send_good()
        seconds = time.monotonic() - began
        assert await site.comes_back(platform)
        assert everything(tmp_path, beside=platform.data_dir) == before
        assert_only_our_names(platform.data_dir, rooms)
        assert "Traceback" not in platform.log.read_text(errors="replace")
        summary = ", ".join(f"{heard} x {count}" for heard, count in sorted(fuzz.heard.items()))
        print(  # noqa: T201 - the numbers are the point
            f"hostile: {CASES} cases in {seconds:.0f} s, seed {SEED}: 0 exits, 0 files elsewhere, resident"
            f" {started_with:.0f} MB at the start, {peak.megabytes:.0f} MB at the peak; {summary}",
            file=sys.stderr,
        )
    assert peak.megabytes - started_with < GROWTH_MB


class Neighbour:
    """A sender in good faith, whose instances must be taken whatever others send."""

    def __init__(self, dicom_port: int, http_port: int) -> None:
        self._site = Address(dicom_port, http_port)
        self._study = f"1.2.826.0.1.3680043.8.498.{secrets.randbits(40)}"
        self._sent: list[bytes] = []

    async def send_good(self) -> None:
        tail = image(4, 4, "1", element(PIXELS, "OW", struct.pack("<Q", len(self._sent)) * 4))
        instance = Instance(study=self._study, tail=tail)
        one, other = instance.numbered(), instance.numbered()
        assert await self._site.c_store(one) == 0
        assert (await self._site.post(multipart(other.file()))).status == 200
        self._sent += [one.data_set(), other.data_set()]

    async def comes_back(self, platform: Embedded) -> bool:
        """Every one of them, byte for byte, once what was sent before has been indexed."""
        path = f"/dicom-web/studies/{self._study}"
        found = platform.instances(path, at_least=len(self._sent), seconds=60 + CASES / 50)
        return len(found) == len(self._sent) and all(
            any(file.endswith(data) for file in found) for data in self._sent
        )


def assert_only_our_names(data_dir: Path, rooms: set[str]) -> None:
    """Files and folders with names that we give, in the rooms there were; no links, pipes or devices."""
    grown = {path.name for path in data_dir.iterdir()} - rooms
    assert {name for name in grown if not name.endswith(("-wal", "-shm", "-journal"))} == set()
    for path in data_dir.rglob("*"):
        assert _NAME.fullmatch(path.name), path
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISSOCK(mode), path
