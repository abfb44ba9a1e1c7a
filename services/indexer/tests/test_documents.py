"""Manifests and revisions: canonical, deterministic, and strict about what they read."""

import zlib
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isocenter.common.clock import ManualClock
from isocenter.common.dicom import metadata
from isocenter.common.errors import IntegrityError
from isocenter.common.events.models import SettleReason
from isocenter.common.index import manifest
from isocenter.common.index.records import InstanceRecord
from isocenter.common.index.testing import KEYS, instance
from isocenter.indexer import revision
from isocenter.indexer.revision import Revision, choose, content_of

NOW = ManualClock().now()


def records(count: int) -> list[InstanceRecord]:
    return [
        replace(
            instance("1.2", "1.2.1", f"1.2.1.{n}"),
            metadata=metadata.encode({"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Ö"}]}}),
            frames=bytes([n]) * n,
        )
        for n in range(count)
    ]


def build(given: list[InstanceRecord]) -> tuple[str, bytes]:
    writer = manifest.ManifestWriter(given[0])
    for record in given:
        writer.add(record)
    return writer.finish(KEYS)


def test_a_manifest_says_everything_about_its_instances() -> None:
    given = records(3)
    key, data = build(given)
    read = manifest.parse(data)
    assert key.startswith(f"manifests/{given[0].study_key}/{given[0].series_key}/")
    assert (given[0].study_instance_uid, given[0].series_instance_uid) == (
        read.study_instance_uid,
        read.series_instance_uid,
    )
    for record, entry in zip(given, read.instances, strict=True):
        assert metadata.decode(record.metadata) == entry.metadata
        for name in (
            "sop_instance_uid",
            "sop_class_uid",
            "transfer_syntax_uid",
            "instance_key",
            "object_key",
            "content_digest",
            "size_bytes",
            "received_at",
            "frames",
        ):
            assert getattr(record, name) == getattr(entry, name)


def test_the_same_instances_give_the_same_manifest_and_others_another() -> None:
    assert build(records(3)) == build(records(3))
    assert build(records(3))[0] != build(records(2))[0]


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_bytes_that_are_no_document_are_an_integrity_error(data: bytes) -> None:
    for document in (data, zlib.compress(data), zlib.compress(b'{"format":"isocenter.series-manifest"}')):
        with pytest.raises(IntegrityError):
            manifest.parse(document)
        with pytest.raises(IntegrityError):
            revision.parse(document)


def test_a_document_of_a_later_format_is_not_guessed_at() -> None:
    text = zlib.decompress(build(records(1))[1]).replace(b'"version":1', b'"version":2')
    with pytest.raises(IntegrityError):
        manifest.parse(zlib.compress(text))
    with pytest.raises(IntegrityError):
        revision.parse(
            revision.dump(revision_of(1, "a")).replace(b'"format_version":1', b'"format_version":2')
        )


def revision_of(version: int, content: str, *, seconds: float = 0) -> Revision:
    return Revision(
        study_key=KEYS.study_key("1.2"),
        version=version,
        content=content,
        reason=SettleReason.QUIET,
        settled_at=NOW + timedelta(seconds=seconds),
        event_id=f"event-{version}",
        series=1,
        instances=2,
        size_bytes=3,
        modalities=("CT",),
        manifests={"s": "manifests/m"},
    )


def test_a_revision_comes_back_as_it_was() -> None:
    assert revision_of(7, "a") == revision.parse(revision.dump(revision_of(7, "a")))


def test_revisions_of_a_study_list_in_order_of_version() -> None:
    keys = [revision_of(version, "a").object_key for version in (2, 10, 1)]
    assert [keys[2], keys[0], keys[1]] == sorted(keys)


def test_content_does_not_depend_on_order() -> None:
    assert content_of(KEYS, ["b", "a"]) == content_of(KEYS, ["a", "b"]) != content_of(KEYS, ["a"])


@pytest.mark.parametrize(
    ("found", "confirmed", "content", "chosen", "settled"),
    [
        ([], [], "now", None, False),
        ([(1, "now")], [(1, "now")], "now", (1, "now"), True),
        ([(1, "old")], [(1, "old")], "now", (1, "old"), False),
        ([(1, "a"), (2, "now")], [(1, "a"), (2, "now")], "now", (2, "now"), True),
        # Died before the confirmation: settled or not, the settler will say, with the same event.
        ([(1, "now")], [], "now", None, False),
        ([(1, "a"), (2, "now")], [(1, "a")], "now", (1, "a"), False),
        # Died, and then more came: the version may have been told, so it is used up.
        ([(1, "old")], [], "now", (1, "old"), False),
        # Died before the index settled, more came, and the same version settled with those.
        ([(1, "orphan"), (1, "now")], [(1, "now")], "now", (1, "now"), True),
        ([(1, "orphan"), (1, "b")], [(1, "b")], "now", (1, "b"), False),
        ([(1, "now"), (1, "b")], [(1, "b")], "now", (1, "b"), False),
        ([(1, "now"), (1, "b")], [], "now", None, False),
    ],
)
def test_what_a_rebuild_makes_of_revisions(
    found: list[tuple[int, str]],
    confirmed: list[tuple[int, str]],
    content: str,
    chosen: tuple[int, str] | None,
    settled: bool,
) -> None:
    result = choose(
        [revision_of(*one) for one in found],
        frozenset(revision_of(*one).object_key for one in confirmed),
        content,
    )
    assert (chosen and revision_of(*chosen), settled) == (result.revision, result.settled)


def test_of_two_unconfirmed_revisions_the_later_is_believed() -> None:
    older, newer = revision_of(1, "a", seconds=0), revision_of(1, "b", seconds=5)
    assert newer == choose([newer, older], frozenset(), "now").revision
