"""What the index survives: kill, full disk, foreign files, half a rebuild."""

import asyncio
import itertools
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isocenter.common.errors import IndexUnavailable, Misconfigured
from isocenter.common.index.ports import Index
from isocenter.common.index.query import Level, Query
from isocenter.common.index.sqlite import SqliteIndex, schema
from isocenter.common.index.testing import arrival, instance, silent

WRITER = """
import asyncio, sys
from pathlib import Path
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.index.testing import arrival, entry, instance

async def main():
    index = await SqliteIndex.open(Path(sys.argv[1]))
    for batch in range(100_000):
        records = [
            instance(f"1.{batch % 3}", f"1.{batch % 3}.{n % 4}", f"1.{batch}.{n}", received=batch) for n in
            range(20)
        ]
        if batch % 5 == 4:
            records.append(instance(f"1.{batch % 3}", f"1.{batch % 3}.0", f"1.{batch}.1", content="x",
            received=batch))
        report = lambda key, applied: [entry(f"{batch}-{n}", key) for n, _ in enumerate(applied.conflicts)]
        await index.apply(records, arrival(batch), report)
        print(batch, flush=True)

asyncio.run(main())
"""


def killed_while_writing(path: Path, batches: int, delay: float) -> int:
    """Starts a writer, kills it, and returns the last batch that it reported as written."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in itertools.islice(writer.stdout, batches):
            last = int(line)
        time.sleep(delay)
        writer.kill()
        return max([last, *map(int, writer.stdout.read().split())])


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "delay"), [(1, 0.0), (7, 0.003), (20, 0.011), (40, 0.002)])
async def test_a_killed_writer_leaves_whole_batches_and_all_that_were_acknowledged(
    tmp_path: Path, batches: int, delay: float
) -> None:
    path = tmp_path / "index.sqlite"
    last = await asyncio.to_thread(killed_while_writing, path, batches, delay)

    index = await SqliteIndex.open(path)
    try:
        studies = [study.study_instance_uid async for study in index.studies()]
        found = [record.sop_instance_uid for uid in studies async for record in index.instances(uid)]
        per_batch = {batch: sum(uid.startswith(f"1.{batch}.") for uid in found) for batch in range(last + 2)}
        assert {20} == {per_batch[batch] for batch in range(last + 1)}
        assert per_batch[last + 1] in {0, 20}
        outbox = [entry.event_id for entry in await index.pending_outbox(10_000)]
        conflicts = [conflict for uid in studies for conflict in await index.conflicts(uid)]
        assert len(conflicts) == len(outbox)
        async for study in index.studies():
            series = await index.list_series(study.study_instance_uid)
            held = [r async for r in index.instances(study.study_instance_uid)]
            assert (len(held), sum(r.size_bytes for r in held)) == (study.instances, study.size_bytes)
            assert len(held) == sum(one.instances for one in series)
    finally:
        await index.close()
    with sqlite3.connect(path) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        assert [] == connection.execute("PRAGMA foreign_key_check").fetchall()
    connection.close()


async def test_a_full_disk_is_an_unavailable_index_and_nothing_is_half_written(tmp_path: Path) -> None:
    index = await SqliteIndex.open(tmp_path / "index.sqlite")
    try:
        await index.apply([instance("1.1", "1.1.1", "1")], arrival(), silent)
        pages = await index._database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        await index._database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 5}").fetchone())
        batch = [instance("1.1", "1.1.2", f"2.{n}") for n in range(200)]
        with pytest.raises(IndexUnavailable, match="full"):
            await index.apply(batch, arrival(), silent)
        study = await index.get_study("1.1")
        assert study is not None
        assert 1 == study.instances

        await index._database.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
        assert 200 == len((await index.apply(batch, arrival(), silent)).new)
    finally:
        await index.close()


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    index = await SqliteIndex.open(tmp_path / "deep" / "index.sqlite")
    await index.apply([instance("1.1", "1.1.1", "1")], arrival(), silent)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep").iterdir()}
    await index.close()
    assert {0o600} == set(modes.values())
    assert "index.sqlite" in modes


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA application_id = 7", f"PRAGMA user_version = {schema.VERSION + 1}", "PRAGMA user_version = 0"],
)
async def test_a_foreign_or_newer_file_is_not_touched(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "index.sqlite"
    await (await SqliteIndex.open(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(Misconfigured):
        await SqliteIndex.open(path)


async def test_no_database_at_all_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"this is no database" * 1000)
    with pytest.raises(IndexUnavailable):
        await SqliteIndex.open(tmp_path / "index.sqlite")
    with pytest.raises(IndexUnavailable):
        await SqliteIndex.open(tmp_path / "index.sqlite" / "below-a-file")


async def test_errors_never_quote_values(tmp_path: Path) -> None:
    index = await SqliteIndex.open(tmp_path / "index.sqlite")
    try:
        with pytest.raises(IndexUnavailable) as caught:
            await index._database.write(lambda c: c.execute("SELECT 'DOE^JANE' FROM missing_DOE_JANE"))
    finally:
        await index.close()
    assert "DOE" not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_a_closed_index_is_unavailable(index: Index) -> None:
    await index.check()
    await index.close()
    await index.close()
    with pytest.raises(IndexUnavailable):
        await index.check()
    with pytest.raises(IndexUnavailable):
        await index.search(Query(Level.STUDY))


async def test_half_a_rebuilt_index_is_closed_to_others_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    rebuilding, other = await SqliteIndex.open(path), await SqliteIndex.open(path)
    batch = [instance("1.1", "1.1.1", "1")]
    try:
        await rebuilding.clear()
        await rebuilding.apply(batch, arrival(), silent)
        for refused in (
            other.check(),
            other.apply(batch, arrival(), silent),
            other.claim_due(arrival(999).now, 9, 9),
        ):
            with pytest.raises(IndexUnavailable, match="rebuild"):
                await refused
        await rebuilding.close()
        later = await SqliteIndex.open(path)
        with pytest.raises(IndexUnavailable, match="rebuild"):
            await later.check()
        await later.clear()
        await later.rebuilt()
        await later.close()
        await other.check()
    finally:
        await other.close()


async def test_a_cancelled_caller_does_not_leave_a_transaction_open(index: Index) -> None:
    batch = [instance("1.1", "1.1.1", f"1.{n}") for n in range(200)]
    task = asyncio.create_task(index.apply(batch, arrival(), silent))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    applied = await index.apply(batch, arrival(), silent)
    assert 200 == len(applied.new) + applied.duplicates
