"""Where studies may be pulled from, and that an event cannot say anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from isocenter.common.errors import Misconfigured
from isocenter.common.events.models import LocationKind, StudyLocation
from isocenter.ingest.pull.domain import PullRefused
from isocenter.ingest.pull.sources import Secret, Sources

SITE = """
[[source]]
name = "east"
kind = "dicomweb"
ref = "https://pacs.east.example/dicom-web"

[[source]]
name = "east-research"
kind = "dicomweb"
ref = "https://pacs.east.example/dicom-web/research/"
endpoint = "http://10.1.2.3:8042/dicom-web"
token = { env = "EAST_TOKEN" }

[[source]]
name = "outbox"
kind = "s3"
ref = "s3://east-outbox/studies"
endpoint = "https://s3.example.org"

[[source]]
name = "pacs"
kind = "dimse"
ref = "dimse://PACS"
host = "pacs.example.org"
port = 104
"""


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    path = tmp_path / "sources.toml"
    path.write_text(SITE)
    return Sources.load(path)


def test_the_example_can_be_used() -> None:
    example = Path(__file__).parents[3] / "deploy/examples/sources.toml"

    assert ["east", "east-outbox", "west"] == [source.name for source in Sources.load(example)]


def found(sources: Sources, ref: str, kind: str) -> tuple[str, str]:
    source, path = sources.find(StudyLocation(kind=LocationKind(kind), ref=ref))
    return source.name, path


@pytest.mark.parametrize(
    ("ref", "kind", "expected"),
    [
        ("https://pacs.east.example/dicom-web", "dicomweb", ("east", "")),
        ("https://pacs.east.example/dicom-web/", "dicomweb", ("east", "")),
        ("https://pacs.east.example/dicom-web/a/b", "dicomweb", ("east", "a/b")),
        ("https://pacs.east.example/dicom-web/research", "dicomweb", ("east-research", "")),
        ("https://pacs.east.example/dicom-web/research/x", "dicomweb", ("east-research", "x")),
        ("s3://east-outbox/studies/2026/1", "s3", ("outbox", "2026/1")),
        ("dimse://PACS", "dimse", ("pacs", "")),
    ],
)
def test_a_reference_is_the_longest_source_that_contains_it(
    sources: Sources, ref: str, kind: str, expected: tuple[str, str]
) -> None:
    assert expected == found(sources, ref, kind)


@pytest.mark.parametrize(
    ("ref", "kind", "reason"),
    [
        ("https://pacs.east.example.evil.example/dicom-web", "dicomweb", "unknown-source"),
        ("https://pacs.east.example/dicom-web2", "dicomweb", "unknown-source"),
        ("https://pacs.east.example:444/dicom-web", "dicomweb", "unknown-source"),
        ("http://pacs.east.example/dicom-web", "dicomweb", "unknown-source"),
        ("http://169.254.169.254/latest/meta-data", "dicomweb", "unknown-source"),
        ("https://PACS.east.example/dicom-web", "dicomweb", "unknown-source"),
        ("https://pacs.east.example/dicom-web/../admin", "dicomweb", "location-refused"),
        ("https://pacs.east.example/dicom-web/./x", "dicomweb", "location-refused"),
        ("https://pacs.east.example/dicom-web/%2e%2e/admin", "dicomweb", "location-refused"),
        ("https://pacs.east.example/dicom-web//evil.example", "dicomweb", "location-refused"),
        ("s3://other/studies", "s3", "unknown-source"),
        ("s3://east-outbox/studies2", "s3", "unknown-source"),
        ("s3://east-outbox", "s3", "unknown-source"),
        ("s3://east-outbox/studies/../keys", "s3", "location-refused"),
        ("dimse://OTHER", "dimse", "unknown-source"),
        ("dimse://PACS/x", "dimse", "location-refused"),
        ("file://etc/passwd", "unknown", "unknown-source"),
        ("https://pacs.east.example/dicom-web", "unknown", "unknown-source"),
    ],
)
def test_anything_else_is_refused_for_good(sources: Sources, ref: str, kind: str, reason: str) -> None:
    with pytest.raises(PullRefused) as refused:
        found(sources, ref, kind)

    assert reason == refused.value.reason_code
    assert "east" not in str(refused.value)


@pytest.mark.parametrize("ref", ["https://user:pw@pacs/x", "https://pacs/x?a=b", "https://pacs/x#a"])
def test_a_reference_has_no_place_for_more(ref: str) -> None:
    with pytest.raises(ValidationError):
        StudyLocation(kind=LocationKind.DICOMWEB, ref=ref)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[source", "TOMLDecodeError"),
        ("a = 1", r"only \[\[source\]\]"),
        (SITE + SITE, "listed twice"),
        (SITE.replace('kind = "s3"', 'kind = "ftp"'), "source 3"),
        (SITE.replace("port = 104", "port = 0"), "source 4.*port"),
        (SITE.replace('ref = "dimse://PACS"', 'ref = "s3://PACS/x"'), "another kind"),
        (SITE.replace('token = { env = "EAST_TOKEN" }', 'token = "hunter2"'), "source 2.*token"),
        (SITE.replace('token = { env = "EAST_TOKEN" }', 'username = "x"'), "source 2"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_and_never_quoted(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(text)

    with pytest.raises(Misconfigured, match=said) as error:
        Sources.load(path)

    assert "hunter2" not in str(error.value)


def test_without_a_file_there_is_nothing_and_a_missing_one_is_said(tmp_path: Path) -> None:
    assert 0 == len(Sources.load(None))
    with pytest.raises(Misconfigured, match="FileNotFoundError"):
        Sources.load(tmp_path / "none.toml")


def test_a_secret_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hidden\n")
    monkeypatch.setenv("A_SECRET", "hidden too")

    assert "hidden" == Secret(file=tmp_path / "secret").read()
    assert "hidden too" == Secret(env="A_SECRET").read()
    for wrong in (Secret(file=tmp_path / "none"), Secret(env="NO_SUCH_SECRET")):
        with pytest.raises(Misconfigured):
            wrong.read()
