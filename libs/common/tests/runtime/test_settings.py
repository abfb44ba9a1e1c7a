"""Settings come from the environment, fail by name, and print without secrets."""

from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from isocenter.common.errors import Misconfigured
from isocenter.common.settings import (
    KafkaSettings,
    PlatformSettings,
    S3Settings,
    ServiceSettings,
    Settings,
    unknown_variables,
)

CANARY = "hunter2"


class DemoSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="ISOCENTER_DEMO_")

    token: SecretStr = SecretStr("")
    upstream: str = ""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)


def test_the_environment_is_read_by_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_DATA_DIR", "/srv/site")
    monkeypatch.setenv("ISOCENTER_DEMO_HTTP_PORT", "8042")

    assert Path("/srv/site") == PlatformSettings.load().data_dir
    assert 8042 == DemoSettings.load().http_port


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_DEMO_HTTP_PORT", "8042")

    assert 1 == DemoSettings.load(http_port=1).http_port


def test_an_empty_variable_means_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_OTLP_ENDPOINT", "")
    monkeypatch.setenv("ISOCENTER_KAFKA_BOOTSTRAP", "")

    settings = PlatformSettings.load()

    assert (None, None) == (settings.otlp_endpoint, settings.site_key_file)


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (KafkaSettings, "bootstrap", "kafka:nine"),
        (KafkaSettings, "bootstrap", "kafka:9092;other:9092"),
        (KafkaSettings, "bootstrap", "kafka://kafka:9092"),
        (S3Settings, "endpoint", "http://"),
        (S3Settings, "endpoint", "http://store:99999"),
        (S3Settings, "endpoint", f"http://somebody:{CANARY}@store"),
        (PlatformSettings, "otlp_endpoint", "http://"),
        (PlatformSettings, "trace_store_url", "http://store:port"),
    ],
)
def test_an_address_that_is_none_is_found_before_anything_connects(
    settings: type[Settings], field: str, value: str
) -> None:
    with pytest.raises(Misconfigured, match=settings.variable(field)) as caught:
        settings.load(**{field: value})

    assert value not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["kafka", "kafka:9092", "10.0.0.1:9092, kafka-1.example:9092,", "[fd00::1]:9092,[fd00::2]:9092"]
)
def test_brokers_are_named_with_or_without_port(value: str) -> None:
    assert value == KafkaSettings.load(bootstrap=value).bootstrap


def test_a_fault_names_the_variable_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_DEMO_HTTP_PORT", CANARY)

    with pytest.raises(Misconfigured) as caught:
        DemoSettings.load()

    assert "ISOCENTER_DEMO_HTTP_PORT: int_parsing" in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None


def test_every_faulty_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_OTLP_ENDPOINT", "ftp://x")
    monkeypatch.setenv("ISOCENTER_LOG_LEVEL", "loud")

    with pytest.raises(Misconfigured) as caught:
        PlatformSettings.load()

    assert "ISOCENTER_OTLP_ENDPOINT" in str(caught.value)
    assert "ISOCENTER_LOG_LEVEL" in str(caught.value)


def test_settings_do_not_change_after_start() -> None:
    settings = cast("Any", PlatformSettings.load())

    with pytest.raises(ValidationError):
        settings.data_dir = Path("/elsewhere")


def test_what_is_printed_masks_secrets() -> None:
    settings = DemoSettings.load(token=CANARY, upstream=f"https://user:{CANARY}@host:8443/x")

    described = settings.describe()

    assert CANARY not in str(described)
    assert "***" == described["ISOCENTER_DEMO_TOKEN"]
    assert "https://***@host:8443/x" == described["ISOCENTER_DEMO_UPSTREAM"]
    assert "127.0.0.1" == described["ISOCENTER_DEMO_HOST"]


def test_services_bind_to_loopback_unless_told_otherwise() -> None:
    settings = DemoSettings.load()

    assert {"127.0.0.1"} == {settings.host, settings.health_host}


def test_a_misspelt_variable_is_found() -> None:
    environment = {
        "ISOCENTER_DATA_DIR": "/srv",
        "ISOCENTER_DATADIR": "/srv",
        "ISOCENTER_DEMO_HTTP_PORT": "1",
        "ISOCENTER_FAULT_KILLS": "3",
        "PATH": "/bin",
    }

    found = unknown_variables(
        PlatformSettings, DemoSettings, environment=environment, ignore=("ISOCENTER_FAULT_",)
    )

    assert ["ISOCENTER_DATADIR"] == found
