"""Announced studies in S3, on a real server."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from minio import Minio

from isocenter.ingest.pull.domain import PullFailed, PullRefused
from isocenter.ingest.pull.puller import GROUP
from isocenter.ingest.pull.sources import S3Source
from isocenter.ingest.pull.testing import Known, Study, announcement, puller
from isocenter.ingest.testing import Dicom, World

if TYPE_CHECKING:
    from testbed.radosgw import RadosGateway

Make = Callable[..., S3Source]


@pytest.fixture
def bucket() -> str:
    return f"outbox-{secrets.token_hex(4)}"


@pytest.fixture
def client(s3_server: RadosGateway, bucket: str) -> Minio:
    address = s3_server.endpoint.partition("://")[2]
    client = Minio(address, s3_server.access_key, s3_server.secret_key, secure=False, region="us-east-1")
    client.make_bucket(bucket)
    return client


@pytest.fixture
def source(s3_server: RadosGateway, client: Minio, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("EAST_ACCESS", s3_server.access_key)
    monkeypatch.setenv("EAST_SECRET", s3_server.secret_key)

    def make(**more: object) -> S3Source:
        keys = {"access_key": {"env": "EAST_ACCESS"}, "secret_key": {"env": "EAST_SECRET"}}
        place = {"ref": f"s3://{bucket}/studies", "endpoint": s3_server.endpoint}
        return S3Source.model_validate({"kind": "s3", "name": "east", **place, **keys, **more})

    return make


@pytest.fixture
def study(client: Minio, bucket: str, dicom: Dicom) -> Study:
    """Below `studies/7`, and beside it what must not be taken for it."""
    made, other = Study.make(dicom), Study.make(dicom, count=1)
    for number, file in enumerate(made.files.values()):
        client.put_object(bucket, f"studies/7/s{number % 2}/{number}.dcm", BytesIO(file), len(file))
    (file,) = other.files.values()
    client.put_object(bucket, "studies/70/0.dcm", BytesIO(file), len(file))
    return made


async def test_a_study_comes_from_its_prefix_and_no_other(
    world: World, source: Make, study: Study, bucket: str
) -> None:
    await puller(world, source()).study_announced(announcement(study.uid, f"s3://{bucket}/studies/7", 6))

    assert sorted(study.files.values()) == sorted((await world.objects()).values())


async def test_only_what_is_missing_is_stored(world: World, source: Make, study: Study, bucket: str) -> None:
    known = Known(sorted(study.files)[:4])

    pulling = puller(world, source(), known=known)
    await pulling.study_announced(announcement(study.uid, f"s3://{bucket}/studies/7", 6))

    assert 2 == len(await world.objects())


async def test_a_page_beside_the_instances_does_no_harm(
    world: World, source: Make, study: Study, client: Minio, bucket: str
) -> None:
    client.put_object(bucket, "studies/7/index.html", BytesIO(b"<html>" * 100), 600)

    await puller(world, source()).study_announced(announcement(study.uid, f"s3://{bucket}/studies/7", 6))

    assert 6 == len(await world.objects())


@pytest.mark.parametrize(
    ("path", "more", "reason"),
    [
        ("studies/8", {}, "study-not-found"),
        ("studies/7", {"max_instances": 5}, "too-large"),
        ("studies/7", {"max_bytes": 9000}, "too-large"),
        ("studies/7", {"secret_key": {"env": "EAST_ACCESS"}}, "access-denied"),
        ("studies", {}, "study-mismatch"),
        ("elsewhere", {}, "unknown-source"),
        ("studies/../elsewhere", {}, "location-refused"),
    ],
)
async def test_refusals_have_reasons(
    world: World, source: Make, study: Study, bucket: str, path: str, more: dict[str, object], reason: str
) -> None:
    with pytest.raises((PullFailed, PullRefused), match=reason):
        await puller(world, source(**more)).study_announced(
            announcement(study.uid, f"s3://{bucket}/{path}", 6)
        )
    assert [] == world.staged()


def test_announcements_are_read_whether_or_not_there_are_sources(world: World) -> None:
    world.service()

    assert [GROUP] == world.bus.subscribed


async def test_without_sources_an_announcement_is_refused_for_good(world: World) -> None:
    with pytest.raises(PullRefused, match="unknown-source"):
        await puller(world).study_announced(announcement("1.2.3", "s3://east/studies/7", 6))
