"""The judge of the fault suite can find against the platform."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.faults import judge
from tests.faults.judge import Heard

from isocenter.common.dicom.part10 import encode_file_meta
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore

KEYS = SiteKeys(bytes(range(32)))
STUDY, SOP = "1.2.3", "1.2.3.4"
DATA_SET = b"the bytes that came"
DIGEST = hashlib.sha256(DATA_SET).hexdigest()


async def store_one(data_dir: Path, *, recorded_digest: str = DIGEST) -> None:
    """One instance as ingest stores it."""
    store = LocalObjectStore(data_dir / "objects")
    syntax, sop_class = "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2"
    header = encode_file_meta(sop_class_uid=sop_class, sop_instance_uid=SOP, transfer_syntax_uid=syntax)
    metadata = {
        "instance_key": KEYS.instance_key(SOP),
        "study_key": KEYS.study_key(STUDY),
        "content_digest": recorded_digest,
    }
    await store.put(KEYS.object_key(SOP, syntax, DIGEST), header + DATA_SET, metadata)
    await store.close()


def heard(digest: str = DIGEST, sop: str = SOP) -> Heard:
    return Heard({STUDY: {sop: digest}}, acknowledgements=1)


async def test_what_is_there_is_neither_lost_nor_corrupt(tmp_path: Path) -> None:
    await store_one(tmp_path)
    held = await judge.read_store(tmp_path)
    assert (1, []) == (held.objects, held.corrupt)
    assert [] == judge.lost(heard(), held, KEYS)
    assert {KEYS.study_key(STUDY): {KEYS.instance_key(SOP)}} == held.per_study


async def test_an_instance_that_is_not_there_is_lost(tmp_path: Path) -> None:
    await store_one(tmp_path)
    held = await judge.read_store(tmp_path)
    assert [KEYS.instance_key("1.2.3.5")] == judge.lost(heard(sop="1.2.3.5"), held, KEYS)


async def test_an_instance_with_other_bytes_is_lost(tmp_path: Path) -> None:
    await store_one(tmp_path)
    held = await judge.read_store(tmp_path)
    assert [KEYS.instance_key(SOP)] == judge.lost(heard(digest="0" * 64), held, KEYS)


async def test_an_object_whose_bytes_changed_is_corrupt(tmp_path: Path) -> None:
    await store_one(tmp_path)
    (path,) = (path for path in (tmp_path / "objects" / "objects").rglob("*") if path.is_file())
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content.replace(DATA_SET, DATA_SET[::-1]))
    held = await judge.read_store(tmp_path)
    assert 1 == len(held.corrupt)
    assert [KEYS.instance_key(SOP)] == judge.lost(heard(), held, KEYS)


async def test_an_object_that_is_not_what_its_event_said_is_corrupt(tmp_path: Path) -> None:
    await store_one(tmp_path, recorded_digest="0" * 64)
    assert 1 == len((await judge.read_store(tmp_path)).corrupt)


async def test_a_truncated_object_is_corrupt_and_hides_no_other(tmp_path: Path) -> None:
    await store_one(tmp_path)
    (path,) = (path for path in (tmp_path / "objects" / "objects").rglob("*") if path.is_file())
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-10])
    held = await judge.read_store(tmp_path)
    assert 1 == len(held.corrupt)


def test_a_file_left_in_the_staging_area_is_seen(tmp_path: Path) -> None:
    for name in ("staging/w", "pending"):
        (tmp_path / "objects" / name).mkdir(parents=True)
    assert [] == judge.staged_leftovers(tmp_path)
    (tmp_path / "objects" / "staging" / "w.lock").touch()
    assert [] == judge.staged_leftovers(tmp_path)
    (tmp_path / "objects" / "staging" / "w" / "empty").touch()
    assert [] == judge.staged_leftovers(tmp_path)
    (tmp_path / "objects" / "staging" / "w" / "half").write_bytes(b"x")
    (tmp_path / "objects" / "pending" / "half").touch()
    assert ["pending/half", "staging/w/half"] == sorted(judge.staged_leftovers(tmp_path))
