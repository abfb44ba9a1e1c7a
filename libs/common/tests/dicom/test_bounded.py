"""What a child may take, what becomes of it, and of whoever waits for it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from isocenter.common.dicom.bounded import WORKER, Loss, Parsed, ParserPool, Source
from isocenter.common.dicom.bounded_wire import Bounds
from isocenter.common.dicom.describe import describe
from isocenter.common.errors import InvalidInstance, RejectReason, StoreUnavailable, Transient
from isocenter.common.index.attributes import select

TAGS = ("00080018", "00100010", "00080060")
HOSTILE = """
import os, sys
from isocenter.common.dicom.bounded_worker import main
from isocenter.common.dicom.describe import describe

async def hostile(read, size, *, inline):
    data = await read(0, size)
    if data.startswith(b"loop"):
        while True:
            pass
    if data.startswith(b"sleep"):
        import time
        time.sleep(3600)
    if data.startswith(b"allocate"):
        kept = []
        while True:
            kept.append(bytearray(16 << 20))
    if data.startswith(b"crash"):
        os.abort()
    if data.startswith(b"nonsense"):
        os.write(1, b"\\x04\\x02\\x00\\x00\\x00{}")
    if data.startswith(b"file"):
        with open("/tmp/" + data.decode(), "wb") as file:
            file.write(b"x")
    if data.startswith(b"environment"):
        os.write(1, b"\\xff\\0\\0\\0\\0" if set(os.environ) - {"LC_ALL", "LC_CTYPE"} else b"")
    return await describe(read, size, inline=inline)

sys.exit(main(sys.argv[1:], using=hostile))
"""

Losses = list[Loss]
MakePool = Callable[..., ParserPool]


def source(data: bytes, *, beginning: int = 32 << 10) -> Source:
    async def read(start: int, end: int) -> bytes:
        return data[start:end]

    return Source(len(data), data[:beginning], read)


@pytest.fixture
def losses() -> Losses:
    return []


@pytest.fixture
async def make(tmp_path: Path, losses: Losses) -> AsyncIterator[MakePool]:
    """A pool whose child does what the bytes ask it to."""
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE)
    pools: list[ParserPool] = []

    def make(
        *, cpu_seconds: float = 20, memory_bytes: int = 512 << 20, wall_seconds: float = 60
    ) -> ParserPool:
        bounds = Bounds(memory_bytes, cpu_seconds, TAGS)
        command = (sys.executable, "-I", str(script))
        pools.append(
            ParserPool(bounds=bounds, wall_seconds=wall_seconds, lost=losses.append, command=command)
        )
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


@pytest.fixture(scope="module")
def sound(request: pytest.FixtureRequest) -> bytes:
    import pydicom  # noqa: PLC0415

    return (Path(pydicom.__file__).parent / "data/test_files/CT_small.dcm").read_bytes()


async def test_a_child_finds_what_is_found_here(some_accepted_files: list[Path]) -> None:
    pool = ParserPool(bounds=Bounds(tags=TAGS))
    try:
        for path in some_accepted_files:
            data = path.read_bytes()
            for beginning in (32 << 10, 200):
                (found,) = await pool.describe([source(data, beginning=beginning)])
                expected = await describe(source(data).read, len(data))
                assert isinstance(found, Parsed), path
                assert found.header == expected.header
                assert found.transfer_syntax_uid == expected.transfer_syntax_uid
                assert found.metadata == expected.metadata
                assert found.frames == (expected.frames.pack() if expected.frames else b"")
                kept = {tag: expected.attributes[tag] for tag in TAGS if tag in expected.attributes}
                assert select(found.attributes) == select(kept)
    finally:
        await pool.close()


@pytest.mark.parametrize(
    ("what", "loss"),
    [
        (b"loop", Loss.DIED),
        (b"sleep", Loss.TIME),
        (b"crash", Loss.DIED),
        (b"nonsense", Loss.NONSENSE),
        (b"allocate", None),
    ],
)
async def test_a_runaway_is_cut_off_and_others_are_not(
    make: MakePool, losses: Losses, sound: bytes, what: bytes, loss: Loss | None
) -> None:
    pool = make(cpu_seconds=0.5 if what == b"loop" else 20, wall_seconds=3 if what == b"sleep" else 60)
    outcomes = await pool.describe([source(each) for each in (sound, sound, what * 100, sound)])
    assert [type(each) for each in outcomes] == [Parsed, Parsed, InvalidInstance, Parsed]
    assert isinstance(outcomes[2], InvalidInstance)
    assert outcomes[2].reason is RejectReason.TOO_LARGE
    assert losses == ([loss] if loss else [])  # what runs out of memory can still say so
    assert [type(each) for each in await pool.describe([source(sound)])] == [Parsed]


async def test_many_runaways_cost_less_each_than_the_first_may(
    make: MakePool, losses: Losses, sound: bytes
) -> None:
    """Ten at 600 s of processor time would be more than any event may take."""
    pool = make(cpu_seconds=600)
    pool._strict_until = asyncio.get_running_loop().time() + 600  # as after a first one
    outcomes = await pool.describe([source(b"loop"), source(sound), source(b"loop")])
    assert [type(each) for each in outcomes] == [InvalidInstance, Parsed, InvalidInstance]
    assert losses == [Loss.DIED, Loss.DIED]
    (strict,) = pool.pids or [0]
    pool._strict_until = 0  # that time is over
    assert [type(each) for each in await pool.describe([source(sound)])] == [Parsed]
    assert pool.pids
    assert strict not in pool.pids


async def test_no_child_writes_a_file(make: MakePool, sound: bytes) -> None:
    name = f"isocenter-bounded-{os.getpid()}"
    await make().describe([source(f"file-{name}".encode())])
    left = Path("/tmp") / f"file-{name}"  # noqa: S108
    try:
        assert not left.exists() or left.stat().st_size == 0
    finally:
        left.unlink(missing_ok=True)


async def test_a_child_has_none_of_our_environment(make: MakePool, losses: Losses, sound: bytes) -> None:
    os.environ["ISOCENTER_CANARY"] = "1"
    try:
        (outcome,) = await make().describe([source(b"environment")])
    finally:
        del os.environ["ISOCENTER_CANARY"]
    assert isinstance(outcome, InvalidInstance)
    assert outcome.reason is RejectReason.NOT_DICOM
    assert losses == []


async def test_a_killed_child_costs_no_instance(make: MakePool, losses: Losses, sound: bytes) -> None:
    pool = make()
    await pool.describe([source(sound)])
    (pid,) = pool.pids
    running = asyncio.create_task(pool.describe([source(b"not DICOM"), source(sound)]))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert [type(each) for each in await running] == [InvalidInstance, Parsed]
    outcomes = await pool.describe([source(sound), source(sound)])
    assert [type(each) for each in outcomes] == [Parsed, Parsed]
    assert pid not in pool.pids
    assert losses == []


async def test_what_cannot_be_read_is_that_instances_error(make: MakePool, sound: bytes) -> None:
    async def broken(start: int, end: int) -> bytes:
        raise StoreUnavailable("down")

    bad = Source(len(sound), sound[:100], broken)
    outcomes = await make().describe([source(sound), bad, source(sound, beginning=0)])
    assert [type(each) for each in outcomes] == [Parsed, StoreUnavailable, Parsed]


async def test_a_pool_that_is_closed_starts_nothing(make: MakePool, sound: bytes) -> None:
    pool = make()
    await pool.describe([source(sound)])
    (pid,) = pool.pids
    await pool.close()
    assert not _lives(pid)
    with pytest.raises(Transient):
        await pool.describe([source(sound)])


PARENT = """
import asyncio, sys
from isocenter.common.dicom.bounded import ParserPool, Source

async def main():
    pool = ParserPool(command=(sys.executable, "-I", sys.argv[1]))
    async def read(start, end):
        return b""
    running = asyncio.create_task(pool.describe([Source(4, b"loop", read)]))
    while not pool.pids:
        await asyncio.sleep(0.01)
    print(pool.pids[0], flush=True)
    await running

asyncio.run(main())
"""


def test_children_end_with_their_parent(tmp_path: Path, make: MakePool) -> None:
    """Even one that runs in circles and reads no end of its input."""
    script = tmp_path / "hostile.py"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(script)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 20
    while _lives(child):
        assert time.monotonic() < until
        time.sleep(0.01)


FIRST = """
import asyncio, os
from isocenter.common.dicom.bounded import ParserPool, Source

async def main():
    async def read(start, end):
        return b""
    pool = ParserPool()
    print(os.getpid(), *[type(each).__name__ for each in await pool.describe([Source(4, b"none", read)])])
    await pool.close()

asyncio.run(main())
"""


def test_children_serve_the_first_process_of_a_container() -> None:
    """Process 1 is what orphans get as their parent, and what a service is in its container."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("NOT RUN: this machine gives no PID namespace")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", FIRST], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["1", "InvalidInstance"]


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def test_the_worker_is_a_module_of_ours() -> None:
    assert WORKER[1] == "-I"
