"""Which engines are opened, and what is refused before anything is."""

from __future__ import annotations

from pathlib import Path

import pytest

from isocenter.common.bus.factory import EmbeddedTransport
from isocenter.common.clock import SystemClock
from isocenter.common.engines import Engines
from isocenter.common.errors import Misconfigured
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.keys import SiteKeys
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.runtime import open_platform
from isocenter.common.settings import PlatformSettings

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def site(tmp_path: Path) -> PlatformSettings:
    return PlatformSettings(data_dir=tmp_path / "data")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "mounted.key"
    path.write_bytes(SECRET)
    path.chmod(0o444)
    return path


async def test_without_names_everything_is_in_the_data_directory(site: PlatformSettings) -> None:
    async with open_platform(site) as platform:
        assert isinstance(platform.store, LocalObjectStore)
        assert isinstance(platform.index, SqliteIndex)
        assert isinstance(platform.transport, EmbeddedTransport)
    assert {} == Engines.load(site).describe()


async def test_kafka_without_mongodb_is_refused(
    site: PlatformSettings, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOCENTER_KAFKA_BOOTSTRAP", "127.0.0.1:9")
    with pytest.raises(Misconfigured, match="ISOCENTER_MONGO_URI"):
        async with open_platform(site.model_copy(update={"site_key_file": key_file})):
            pass


async def test_replicas_that_would_each_make_a_key_are_refused(
    site: PlatformSettings, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that start at once beside an empty table: what one sealed, the other could not open."""
    monkeypatch.setenv("ISOCENTER_KAFKA_BOOTSTRAP", "127.0.0.1:9")
    monkeypatch.setenv("ISOCENTER_MONGO_URI", "mongodb://127.0.0.1:9/")
    with pytest.raises(Misconfigured, match="ISOCENTER_SITE_KEY_FILE: a file"):
        await Engines.load(site).open_keys()
    with pytest.raises(Misconfigured, match="ISOCENTER_KEYS_FILE: a file"):
        await Engines.load(site).open_study_keys(SystemClock())
    assert not (site.data_dir / "keys").exists()

    monkeypatch.setenv("ISOCENTER_KEYS_FILE", str(key_file))
    keys = await Engines.load(site).open_study_keys(SystemClock())
    await keys.close()


def test_what_is_named_is_described_without_its_secrets(
    site: PlatformSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "KAFKA_BOOTSTRAP": "127.0.0.1:9",
        "KAFKA_PASSWORD": "opensesame",
        "MONGO_URI": "mongodb://user:opensesame@127.0.0.1:9/",
        "S3_ENDPOINT": "http://127.0.0.1:9",
        "S3_SECRET_KEY": "opensesame",
    }.items():
        monkeypatch.setenv(f"ISOCENTER_{name}", value)
    described = Engines.load(site).describe()

    assert "127.0.0.1:9" == described["ISOCENTER_KAFKA_BOOTSTRAP"]
    assert "http://127.0.0.1:9" == described["ISOCENTER_S3_ENDPOINT"]
    assert "opensesame" not in str(described)


def test_a_process_that_keeps_nothing_needs_no_data_directory(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOCENTER_KAFKA_BOOTSTRAP", "127.0.0.1:9")
    monkeypatch.setenv("ISOCENTER_MONGO_URI", "mongodb://127.0.0.1:9/")
    monkeypatch.setenv("ISOCENTER_S3_ENDPOINT", "http://127.0.0.1:9")

    monkeypatch.setenv("ISOCENTER_KEYS_FILE", str(key_file))

    with_spans = PlatformSettings(data_dir=tmp_path / "d", site_key_file=key_file)
    without = with_spans.model_copy(update={"spans_kept": 0})
    assert (True, False) == (Engines.load(with_spans).needs_data_dir, Engines.load(without).needs_data_dir)
    assert Engines.embedded(without).needs_data_dir

    for needed in ("ISOCENTER_KEYS_FILE", "ISOCENTER_MONGO_URI"):
        with monkeypatch.context() as patch:
            patch.delenv(needed)
            assert Engines.load(without).needs_data_dir


async def test_a_key_file_that_is_named_is_used_and_never_made(
    site: PlatformSettings, key_file: Path, tmp_path: Path
) -> None:
    named = site.model_copy(update={"site_key_file": key_file})
    keys = await Engines.load(named).open_keys()
    assert SiteKeys(SECRET).study_key("1.2.3") == keys.study_key("1.2.3")

    missing = site.model_copy(update={"site_key_file": tmp_path / "absent.key"})
    with pytest.raises(Misconfigured, match="cannot be read"):
        await Engines.load(missing).open_keys()
    assert not (tmp_path / "absent.key").exists()


def test_a_key_file_that_others_can_replace_is_refused(key_file: Path) -> None:
    key_file.chmod(0o664)
    with pytest.raises(Misconfigured, match="0664"):
        SiteKeys.load(key_file)


async def test_no_spans_are_kept_where_none_are_wanted(site: PlatformSettings) -> None:
    async with open_platform(site.model_copy(update={"spans_kept": 0})) as platform:
        platform.telemetry("ingest").tracer.start_span("x").end()
    assert not (site.data_dir / "spans.sqlite").exists()
