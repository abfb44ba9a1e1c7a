"""Opening a site, and running a service as a process."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isocenter.common.errors import Misconfigured, StoreUnavailable
from isocenter.common.index.sqlite import SqliteIndex
from isocenter.common.objects.local import LocalObjectStore
from isocenter.common.runtime import open_platform, prepare_data_dir, start_service, stop_service
from isocenter.common.service import ASGIApp, Health
from isocenter.common.serving import SAME_WISH_SECONDS, serve_http
from isocenter.common.settings import PlatformSettings

SERVICE = textwrap.dedent(
    """
    import asyncio, os, sys
    from pydantic_settings import SettingsConfigDict
    from isocenter.common.errors import StoreUnavailable
    from isocenter.common.runtime import run_service
    from isocenter.common.service import ASGIApp, Health
    from isocenter.common.settings import ServiceSettings

    class DemoSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="ISOCENTER_DEMO_")
        fail: bool = False
        defect: bool = False
        hang: bool = False

    class Demo:
        name = "demo"

        def __init__(self, settings, ports):
            self.settings, self.ports = settings, ports

        async def start(self):
            if self.settings.fail:
                raise StoreUnavailable("no store")
            if self.settings.defect:
                raise ValueError("DOE^JANE")

        async def stop(self):
            if self.settings.hang:
                await asyncio.Event().wait()
            print("stopped", flush=True)

        async def health(self):
            return [Health("demo", ok=True)]

        async def asgi(self, scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

    if __name__ == "__main__":
        sys.exit(run_service("demo", Demo, DemoSettings))
    """
)


@pytest.fixture
def settings(tmp_path: Path) -> PlatformSettings:
    return PlatformSettings(data_dir=tmp_path / "site", otlp_endpoint=None)


class Process:
    """A service in a process of its own; its log is read from a file."""

    def __init__(self, directory: Path, **environment: str) -> None:
        script = directory / "demo.py"
        script.write_text(SERVICE)
        self.log = directory / "log"
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("ISOCENTER_", "OTEL_"))
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script)],
                env=clean | {"ISOCENTER_DATA_DIR": str(directory / "site")} | environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, event: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for line in self.lines():
                if line["event"] == event:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {event} in:\n{self.log.read_text()}")

    def port(self, protocol: str) -> int:
        self.wait_for("service.started")
        found = (line for line in self.lines() if line.get("protocol") == protocol)
        return int(next(found)["port"])


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(**environment: str) -> Process:
            process = Process(tmp_path, **environment)
            stack.callback(process.process.wait, 30)
            stack.callback(process.process.kill)
            assert process.process.stdout is not None
            stack.callback(process.process.stdout.close)
            return process

        yield start


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def test_a_new_site_is_closed_to_others(settings: PlatformSettings) -> None:
    async with open_platform(settings):
        pass

    assert 0o700 == stat.S_IMODE(settings.data_dir.stat().st_mode)
    assert 0o600 == stat.S_IMODE((settings.data_dir / "keys" / "site.key").stat().st_mode)


async def test_a_site_keeps_its_keys(settings: PlatformSettings) -> None:
    async with open_platform(settings) as platform:
        first = platform.keys.study_key("1.2.3")
    async with open_platform(settings) as platform:
        assert first == platform.keys.study_key("1.2.3")


async def test_services_share_store_and_keys_and_have_bus_and_telemetry_of_their_own(
    settings: PlatformSettings,
) -> None:
    async with open_platform(settings) as platform:
        one, other = platform.ports("ingest"), platform.ports("gateway")

        await one.store.put("a/key", b"bytes")
        assert b"bytes" == await other.store.get("a/key")
        assert (one.keys, one.clock) == (other.keys, other.clock)
        assert one.bus is not other.bus
        assert ("ingest", "gateway") == (one.telemetry.service, other.telemetry.service)
        assert one.telemetry is platform.telemetry("ingest")


async def test_closing_closes_everything_even_if_one_part_fails(
    settings: PlatformSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    close_index, close_store = SqliteIndex.close, LocalObjectStore.close

    async def index_fails(index: SqliteIndex) -> None:
        await close_index(index)
        closed.append("index")
        raise RuntimeError("index")

    async def store_closes(store: LocalObjectStore) -> None:
        await close_store(store)
        closed.append("store")

    monkeypatch.setattr(SqliteIndex, "close", index_fails)
    monkeypatch.setattr(LocalObjectStore, "close", store_closes)

    with pytest.raises(RuntimeError, match="index"):
        async with open_platform(settings):
            pass

    assert ["index", "store"] == closed


async def test_libraries_log_through_ours_while_a_site_is_open(
    settings: PlatformSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(logging.getLogger().handlers)

    async with open_platform(settings):
        logging.getLogger("some.library").warning("cannot decode %s", "DOE^JANE")

    captured = capsys.readouterr().err
    assert "library.message" in captured
    assert "DOE" not in captured
    assert before == logging.getLogger().handlers


async def test_a_damaged_span_store_does_not_stop_a_site(
    settings: PlatformSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.data_dir.mkdir(mode=0o700)
    (settings.data_dir / "spans.sqlite").write_bytes(b"not a database" * 1000)

    async with open_platform(settings) as platform:
        assert platform.spans is not None
        assert platform.spans.restarted

    assert "telemetry.spans_discarded" in capsys.readouterr().err


def test_a_directory_with_other_things_in_it_is_not_closed_to_its_owner(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home" / "letter.txt").write_text("x")

    with pytest.raises(Misconfigured, match="holds other files"):
        prepare_data_dir(tmp_path / "home")

    assert 0o755 == stat.S_IMODE((tmp_path / "home").stat().st_mode)


def test_an_open_directory_that_is_empty_or_ours_is_closed(tmp_path: Path) -> None:
    for name in ("empty", "ours"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "ours" / "keys").mkdir()

    for name in ("empty", "ours"):
        prepare_data_dir(tmp_path / name)

        assert 0o700 == stat.S_IMODE((tmp_path / name).stat().st_mode)


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(Misconfigured, match="cannot be used"):
        prepare_data_dir(tmp_path / "file")


async def test_a_port_in_use_is_refused_by_name() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    async with serve_http(app, "127.0.0.1", 0) as port:
        with pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serve_http(app, "127.0.0.1", port):
                pass


class Stubborn:
    """A service that cannot start, or does not stop."""

    name = "stubborn"
    asgi: ASGIApp | None = None
    stopped = 0

    async def start(self) -> None:
        raise StoreUnavailable("first")

    async def stop(self) -> None:
        self.stopped += 1
        if self.stopped == 1:
            raise RuntimeError("second")
        await asyncio.Event().wait()

    async def health(self) -> list[Health]:
        return []


async def test_a_service_that_cannot_start_is_stopped_and_the_first_error_counts() -> None:
    service = Stubborn()

    with pytest.raises(StoreUnavailable, match="first"):
        await start_service(service)

    assert 1 == service.stopped


async def test_a_service_that_does_not_stop_is_cut_off(recorded_health: Any) -> None:
    service = Stubborn()
    service.stopped = 1
    _, telemetry, lines = recorded_health(service)

    async with asyncio.timeout(10):
        await stop_service(service, 0.05, telemetry.log)

    assert ["service.drain_timeout", "service.stopped"] == [line["event"] for line in lines()]


def test_a_process_serves_health_metrics_and_its_own_routes_and_drains_on_sigterm(started: Any) -> None:
    process = started()
    health, http = process.port("health"), process.port("http")

    assert (200, b'{"live":true}') == get(health, "/livez")
    assert 200 == get(health, "/readyz")[0]
    assert b'isocenter_ready{service="demo"} 1.0' in get(health, "/metrics")[1]
    assert (200, b"hello") == get(http, "/anything")
    process.process.send_signal(signal.SIGTERM)

    assert 0 == process.process.wait(30)
    assert "stopped\n" == process.process.stdout.read()
    assert "service.stopped" == process.lines()[-1]["event"]


def test_a_process_prints_its_settings(started: Any) -> None:
    process = started(ISOCENTER_DEMO_DRAIN_SECONDS="7")

    assert "ISOCENTER_DEMO_DRAIN_SECONDS=7" in process.wait_for("settings.loaded")["settings"]


def test_wrong_settings_are_an_exit_status_of_their_own(started: Any) -> None:
    process = started(ISOCENTER_DEMO_HTTP_PORT="many")

    assert 78 == process.process.wait(30)
    assert "ISOCENTER_DEMO_HTTP_PORT: int_parsing" in process.log.read_text()


def test_a_service_that_cannot_start_ends_the_process_and_says_why(started: Any) -> None:
    process = started(ISOCENTER_DEMO_FAIL="true")

    assert 1 == process.process.wait(30)
    assert "StoreUnavailable: no store" == process.lines()[-1]["error"]


def test_the_text_of_an_error_that_nobody_foresaw_is_not_told(started: Any) -> None:
    process = started(ISOCENTER_DEMO_DEFECT="true")

    assert 1 == process.process.wait(30)
    last = process.lines()[-1]
    assert ("service.failed", "ValueError") == (last["event"], last["error"])
    assert "/demo.py:" in last["where"].rpartition(" > ")[2]
    assert "DOE" not in process.log.read_text()
    assert "Traceback" not in process.log.read_text()


def test_a_variable_that_nothing_reads_is_named_at_the_start(started: Any) -> None:
    """Of the service and of the engines; others may be meant for other services."""
    process = started(
        ISOCENTER_DEMO_DRAIN_SECOND="7", ISOCENTER_MONGO_URI_FILE="/uri", ISOCENTER_OTHER_HTTP_PORT="1"
    )
    process.wait_for("service.started")

    (told,) = (line["detail"] for line in process.lines() if line["level"] == "warning")
    assert "nothing reads ISOCENTER_DEMO_DRAIN_SECOND, ISOCENTER_MONGO_URI_FILE" == told


def test_a_drain_that_hangs_ends_in_time(started: Any) -> None:
    process = started(ISOCENTER_DEMO_HANG="true", ISOCENTER_DEMO_DRAIN_SECONDS="0.2")
    process.wait_for("service.started")

    process.process.send_signal(signal.SIGTERM)

    assert 0 == process.process.wait(30)
    assert "service.drain_timeout" in [line["event"] for line in process.lines()]


def test_a_second_signal_does_not_wait_for_the_drain(started: Any) -> None:
    process = started(ISOCENTER_DEMO_HANG="true", ISOCENTER_DEMO_DRAIN_SECONDS="3000")
    process.wait_for("service.started")

    process.process.send_signal(signal.SIGTERM)
    process.wait_for("service.stopping")
    time.sleep(SAME_WISH_SECONDS + 0.3)
    process.process.send_signal(signal.SIGTERM)

    assert 1 == process.process.wait(30)


def test_two_signals_at_once_are_one_wish(started: Any) -> None:
    """`timeout` signals the process and then its group: that must not cut the drain off."""
    process = started(ISOCENTER_DEMO_HANG="true", ISOCENTER_DEMO_DRAIN_SECONDS="1.5")
    process.wait_for("service.started")

    process.process.send_signal(signal.SIGTERM)
    process.wait_for("service.stopping")
    process.process.send_signal(signal.SIGTERM)

    assert 0 == process.process.wait(30)
    assert "service.drain_timeout" in [line["event"] for line in process.lines()]
