"""Metadata out of series manifests, in the form that the indexer documents."""

from __future__ import annotations

import json
import zlib
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isocenter.common.dicom.metadata import decode
from isocenter.common.errors import IntegrityError
from isocenter.common.events.models import SettleReason
from isocenter.common.index.manifest import FORMAT, entries
from isocenter.common.index.ports import RestoredRevision
from isocenter.common.index.records import InstanceRecord
from isocenter.common.objects.sealing import SealContext, Unsealed
from isocenter.common.objects.vault import Vault
from isocenter.gateway.testing import Site, ct, part10, studies

STUDY, SERIES = "1.2.826.0.1.99.1", "1.2.826.0.1.99.1.1"


def manifest(instances: list[dict[str, Any]], **head: Any) -> bytes:
    values = {"format": FORMAT, "version": 1, "series_key": "s", "study_key": "t"} | head
    text = '{"instances":' + json.dumps(instances, separators=(",", ":")) + "," + json.dumps(values)[1:]
    return zlib.compress(text.encode())


def entry(record: InstanceRecord, **metadata: Any) -> dict[str, Any]:
    return {
        "sop_instance_uid": record.sop_instance_uid,
        "metadata": decode(record.metadata) | metadata,
        "frames": "",
    }


async def settle(site: Site, *records: InstanceRecord, **metadata: Any) -> str:
    """Settles the study with one manifest for its first series; `metadata` marks what came out of it."""
    first = records[0]
    key = f"manifests/{first.study_key}/{first.series_key}/m"
    plaintext = manifest([entry(record, **metadata) for record in records])
    await Vault(site.store, Unsealed()).put(key, SealContext(first.study_key, key), plaintext)
    revision = RestoredRevision(1, SettleReason.QUIET, site.clock.now(), {first.series_key: key})
    await site.index.restore_revision(STUDY, revision, settled=True)
    return key


MARK = {"00204000": {"vr": "LT", "Value": ["from the manifest"]}}


@pytest.mark.parametrize("path", [f"studies/{STUDY}", f"studies/{STUDY}/series/{SERIES}"])
async def test_a_settled_series_is_read_from_its_manifest(
    site: Site, client: httpx.AsyncClient, path: str
) -> None:
    records = await site.keep(*studies(1, 1, 3))
    before = (await client.get(f"/dicom-web/{path}/metadata")).json()
    await settle(site, *records, **MARK)
    after = (await client.get(f"/dicom-web/{path}/metadata")).json()
    assert [dict(sorted((document | MARK).items())) for document in before] == after


async def test_a_series_without_a_manifest_is_read_from_the_index(
    site: Site, client: httpx.AsyncClient
) -> None:
    records = await site.keep(*studies(1, 2, 2))
    await settle(site, *records[:2], **MARK)
    documents = (await client.get(f"/dicom-web/studies/{STUDY}/metadata")).json()
    assert [True, True, False, False] == ["00204000" in document for document in documents]


async def test_a_study_that_grows_again_is_read_from_the_index(site: Site, client: httpx.AsyncClient) -> None:
    records = await site.keep(*studies(1))
    await settle(site, *records, **MARK)
    await site.keep(part10(ct(1, 1, 2)))
    documents = (await client.get(f"/dicom-web/studies/{STUDY}/metadata")).json()
    assert [False, False] == ["00204000" in document for document in documents]


async def test_a_lost_manifest_costs_nothing_but_time(site: Site, client: httpx.AsyncClient) -> None:
    records = await site.keep(*studies(1))
    key = await settle(site, *records, **MARK)
    await site.store.delete(key)
    (document,) = (await client.get(f"/dicom-web/studies/{STUDY}/metadata")).json()
    assert "00204000" not in document


METADATA = st.recursive(
    st.integers() | st.text(max_size=20) | st.none(), lambda inner: st.lists(inner, max_size=4), max_leaves=20
)


@given(st.lists(METADATA, max_size=6), st.integers(0, 200_000))
def test_entries_of_any_size_come_back(values: list[Any], padding: int) -> None:
    instances = [
        {"sop_instance_uid": "1.2", "metadata": value, "pad": "],{" * (padding // 3)} for value in values
    ]
    assert instances == list(entries(manifest(instances)))


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"junk",
        zlib.compress(b""),
        zlib.compress(b"[]"),
        zlib.compress(b'{"instances":[{"a":1}'),
        manifest([{"a": 1}])[:-6],
        manifest([], format="other"),
        manifest([], version=2),
        zlib.compress(b'{"instances":[1 2],"format":"isocenter.series-manifest","version":1}'),
        zlib.compress(b'{"other":[],"format":"isocenter.series-manifest","version":1}'),
    ],
)
def test_what_is_no_manifest_is_refused(plaintext: bytes) -> None:
    with pytest.raises(IntegrityError):
        list(entries(plaintext))
