"""The indexer's records are the same wherever a header is parsed; a hostile one costs itself alone."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from isocenter.common.dicom.bounded import Loss, ParserPool
from isocenter.common.dicom.bounded_wire import Bounds
from isocenter.common.dicom.metadata import decode
from isocenter.common.index.attributes import TOP_LEVEL
from isocenter.common.telemetry import Counter, noop
from isocenter.indexer import parsers
from isocenter.indexer.parsers import parser_pool
from isocenter.indexer.rebuild import rebuild
from isocenter.indexer.testing import STUDY, Site, dataset

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
TAKEN = ("CT_small.dcm", "MR_small.dcm", "image_dfl.dcm", "color3d_jpeg_baseline.dcm", "reportsi.dcm")
LOOPS = """
import sys
from isocenter.common.dicom.bounded_worker import main
from isocenter.common.dicom.describe import describe

async def hostile(read, size, *, inline):
    while b"Runaway" in await read(0, size):
        pass
    return await describe(read, size, inline=inline)

sys.exit(main(sys.argv[1:], using=hostile))
"""


@pytest.fixture
async def pool(site: Site) -> AsyncIterator[ParserPool]:
    pool = parser_pool(1, site.telemetry)
    assert pool is not None
    yield pool
    await pool.close()


async def test_what_a_child_reads_a_rebuild_without_one_reads_alike(site: Site, pool: ParserPool) -> None:
    handlers = site.handlers
    handlers = replace(handlers, records=replace(handlers.records, parsers=pool))
    for name in TAKEN:
        path = FILES / name
        if not path.exists():
            continue
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        stored = await site.put(ds, data=path.read_bytes())
        await handlers.instances_stored(site.stored_event([stored], study=ds.StudyInstanceUID))
    many = [await site.put(dataset(number=number)) for number in range(1, 61)]
    await handlers.instances_stored(site.stored_event(many))
    before = await site.dump()
    assert len(before) > len(many)
    await rebuild(site.ports)
    assert before == await site.dump()
    await rebuild(site.ports, parsers=1)
    assert before == await site.dump()


async def test_an_instance_that_costs_a_child_is_indexed_by_its_uids_and_counted(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "loops.py"
    script.write_text(LOOPS)

    def hostile(children: int, *, bounds: Bounds, lost: object) -> ParserPool:
        assert bounds.tags == TOP_LEVEL
        return ParserPool(
            children,
            bounds=replace(bounds, cpu_seconds=0.3),
            lost=lost,  # type: ignore[arg-type]  # as it came
            command=(sys.executable, "-I", str(script)),
        )

    monkeypatch.setattr(parsers, "ParserPool", hostile)
    pool = parser_pool(1, site.telemetry)
    assert pool is not None
    handlers = replace(site.handlers, records=replace(site.handlers.records, parsers=pool))
    stored = [
        await site.put(dataset(number=1)),
        await site.put(dataset(number=2, StudyDescription="Runaway")),
        await site.put(dataset(number=3)),
    ]
    try:
        await handlers.instances_stored(site.stored_event(stored))
    finally:
        await pool.close()

    found = {record.object_key: record async for record in site.index.instances(STUDY)}
    assert {each.object_key for each in stored} == set(found)
    known = [set(decode(found[each.object_key].metadata)) for each in stored]
    assert known[0] == known[2]
    assert known[1] == {"00080016", "00080018", "0020000D", "0020000E"}
    assert site.telemetry.metrics.value(Counter.PARSERS_LOST, reason=Loss.DIED.value) == 1


def test_without_children_nothing_is_started() -> None:
    assert parser_pool(0, noop("indexer")) is None
