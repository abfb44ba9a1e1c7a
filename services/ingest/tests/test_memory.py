"""Memory stays flat however large an instance is."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isocenter.ingest.dimse.pdu import PDU_HEADER, PDV_HEADER, PduType
from isocenter.ingest.testing import RELEASE_RQ, Wire, command_set, p_data

if TYPE_CHECKING:
    from isocenter.ingest.testing import Dicom

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
LARGE = 200 << 20

# Prints its port, then after each line on stdin the most memory it ever had, in KiB.
SERVER = """
import asyncio, sys
from pathlib import Path
from isocenter.common.clock import ManualClock
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.serving import loop_factory
from isocenter.ingest.testing import FakeBus, World, make_ports

async def main():
    root = Path(sys.argv[1])
    store, bus, keys, clock = LocalObjectStore(root), FakeBus(), SiteKeys(bytes(32)), ManualClock()
    service = World(bus, clock, store, keys, make_ports(store, bus, keys, clock), root).service()
    await service.start()
    print(service.dicom_port, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        [line] = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")]
        print(line.split()[1], flush=True)
    await service.stop()
    await store.close()

with asyncio.Runner(loop_factory=loop_factory()) as runner:
    runner.run(main())
"""


async def send(port: int, dicom: Dicom, size: int) -> None:
    """One association with one instance of `size` bytes of pixels, made while it is sent."""
    instance = dicom.instance(pixels=0)
    data = dicom.data_set(dicom.file(instance))
    header = data[:-4] + struct.pack("<L", size)
    assert data.endswith(b"\xe0\x7f\x10\0OW\0\0\0\0\0\0")
    wire = await Wire.open(port)
    assert await wire.associate((CT, EXPLICIT)) == PduType.ASSOCIATE_AC
    request = command_set(1, sop_class=CT, sop_instance=str(instance.SOPInstanceUID), data_set=True)
    await wire.send(p_data(1, request, command=True))
    first = PDU_HEADER.pack(PduType.DATA, len(header) + 6) + PDV_HEADER.pack(len(header) + 2, 1, 0)
    await wire.send(first + header)
    piece = 1 << 16
    value = PDU_HEADER.pack(PduType.DATA, piece + 6) + PDV_HEADER.pack(piece + 2, 1, 0) + bytes(piece)
    for _ in range(size // piece):
        await wire.send(value)
    await wire.send(p_data(1, b"", command=False))
    assert await wire.status() == 0
    await wire.send(RELEASE_RQ)
    assert (await wire.pdu())[0] == PduType.RELEASE_RP
    await wire.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
async def test_200_mb_cost_no_more_than_a_few_chunks(dicom: Dicom, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVER,
        str(tmp_path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    port = int(await process.stdout.readline())

    async def peak() -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        return int(await process.stdout.readline()) << 10

    await send(port, dicom, 8 << 20)
    before = await peak()
    await asyncio.gather(*(send(port, dicom, LARGE) for _ in range(2)))
    grown = await peak() - before
    process.stdin.close()
    assert await process.wait() == 0
    assert grown < 24 << 20


LARGE_INSTANCE = int(os.environ.get("ISOCENTER_TEST_LARGE_INSTANCE", str(300 << 20)))
"""Bytes of pixels; `make large` sends 4 GB, close to the longest value that there can be."""


# What other parts of this repository install beside ingest, pydicom and httpx import for nothing.
ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("numpy", "PIL", "rich")))
sys.argv = ["isocenter.ingest"]
runpy.run_module("isocenter.ingest", run_name="__main__")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
async def test_the_whole_process_stays_below_128_mb(dicom: Dicom, tmp_path: Path) -> None:
    """`python -m isocenter.ingest` as sites run it, on embedded engines: most memory that it ever had."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ISOCENTER_")}
    environment |= {"ISOCENTER_DATA_DIR": str(tmp_path / "data"), "ISOCENTER_INGEST_DICOM_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ALONE), env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    port = 0
    last: dict[str, Any] = {}
    while last.get("event") != "service.started":
        last = json.loads(await process.stderr.readline())
        if last.get("protocol") == "dimse":
            port = last["port"]
    await send(port, dicom, LARGE_INSTANCE // (1 << 16) * (1 << 16))
    [peak] = [
        line.split()[1]
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()  # noqa: ASYNC240 - not on a disk
        if line.startswith("VmHWM")
    ]
    process.terminate()
    await process.communicate()
    stored = sum(file.stat().st_size for file in (tmp_path / "data" / "objects").rglob("*") if file.is_file())
    assert stored >= LARGE_INSTANCE // (1 << 16) * (1 << 16)
    assert int(peak) << 10 < 128_000_000
