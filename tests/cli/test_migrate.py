"""`isocenter migrate` before it moves anything: what it asks for, what it refuses, what it shows."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isocenter.cli import commands_migrate, state
from isocenter.cli.errors import CommandError, Exit
from isocenter.cli.main import command_line
from isocenter.cli.migration.drain import Waiting
from isocenter.cli.migration.engine import Migration
from isocenter.cli.migration.events import TopicTally
from isocenter.cli.migration.objects import Comparison, Copied, Faults
from isocenter.cli.migration.records import RecordComparison
from isocenter.cli.migration.report import Plan, Report
from isocenter.cli.migration.sides import Side
from isocenter.cli.migration.wrapping import KeyTally
from isocenter.cli.moved import refuse_if_moved
from isocenter.common.engines import Engines
from isocenter.common.errors import Misconfigured, StoreFull
from isocenter.common.keys import SiteKeys
from isocenter.common.settings import PlatformSettings

CLUSTER = {
    "ISOCENTER_S3_ENDPOINT": "http://127.0.0.1:1",
    "ISOCENTER_MONGO_URI": "mongodb://user:secret@127.0.0.1:1,127.0.0.2:1/?replicaSet=rs0",
    "ISOCENTER_KAFKA_BOOTSTRAP": "127.0.0.1:1",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CLUSTER, "ISOCENTER_SITE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A site in which nothing was stored yet."""

    async def make() -> None:
        engines = Engines.embedded(PlatformSettings.load(data_dir=tmp_path))
        await engines.open_keys()
        await (await engines.open_index()).close()

    asyncio.run(make())
    return tmp_path


def run(*arguments: str | Path) -> None:
    words = ["migrate", *map(str, arguments)]
    command_line(words)(words, standalone_mode=False)


def test_a_folder_without_a_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no platform has run") as refused:
        run("up", "--data-dir", tmp_path)
    assert refused.value.code == Exit.NOT_FOUND


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_engines_that_are_not_named_are_asked_for(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    monkeypatch.setenv("ISOCENTER_S3_ENDPOINT", CLUSTER["ISOCENTER_S3_ENDPOINT"])

    with pytest.raises(Misconfigured, match="set ISOCENTER_MONGO_URI, ISOCENTER_KAFKA_BOOTSTRAP, too"):
        run(direction, "--data-dir", data_dir)


def test_a_running_platform_is_in_the_way(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)
    with state.hold(data_dir, purpose="test"), pytest.raises(CommandError, match="cannot migrate") as refused:
        run("up", "--data-dir", data_dir)
    assert refused.value.code == Exit.BUSY


def test_a_cluster_that_does_not_answer_is_said(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)

    async def full(_: Migration) -> Plan:
        raise StoreFull("no space for objects")

    monkeypatch.setattr(Migration, "plan", full)
    with pytest.raises(CommandError, match="no space for objects") as refused:
        run("up", "--dry-run", "--data-dir", data_dir)
    assert (Exit.UNREACHABLE, "mend it and run this again: it goes on where it ended") == (
        refused.value.code,
        refused.value.hint,
    )


def test_one_can_look_or_compare_but_not_both(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CommandError, match="one of"):
        run("up", "--dry-run", "--verify-only", "--data-dir", data_dir)


def test_places_hold_no_secret(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)

    places = Side.of_environment(data_dir, data_dir / "keys" / "site.key").places()

    assert {
        "objects": "http://127.0.0.1:1/isocenter",
        "index": "mongodb://127.0.0.1:1,127.0.0.2:1/isocenter",
        "events": "kafka://127.0.0.1:1",
    } == places


def test_the_secret_of_the_data_directory_comes_before_the_one_that_is_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Up: the site is what lies in the directory; the file that the cluster will mount gets a copy."""
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)
    mounted = tmp_path_factory.mktemp("mounted") / "site.key"
    monkeypatch.setenv("ISOCENTER_SITE_KEY_FILE", str(mounted))
    seen: list[Migration] = []

    async def plan(migration: Migration) -> Plan:
        seen.append(migration)
        return a_plan()

    monkeypatch.setattr(Migration, "plan", plan)
    run("up", "--dry-run", "--data-dir", data_dir)
    run("down", "--dry-run", "--data-dir", data_dir)

    own = data_dir / "keys" / "site.key"
    assert [(own, mounted), (mounted, own)] == [(each.source.key_file, each.target.key_file) for each in seen]


def test_a_site_that_has_moved_is_not_started_where_it_was(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)

    async def moves(_: Migration) -> Report:
        return a_report()

    monkeypatch.setattr(Migration, "run", moves)
    run("up", "--data-dir", data_dir)
    refuse_if_moved(data_dir)  # the cluster is named: the platform would run there
    for name in CLUSTER:
        monkeypatch.delenv(name)

    arguments = ["up", "--data-dir", str(data_dir)]
    with pytest.raises(CommandError, match="has moved into a cluster"):
        command_line(arguments)(arguments, standalone_mode=False)

    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)
    run("down", "--data-dir", data_dir)
    for name in CLUSTER:
        monkeypatch.delenv(name)
    refuse_if_moved(data_dir)


def a_plan() -> Plan:
    return Plan(
        source={"objects": "/data/objects", "index": "/data/index", "events": "/data/bus"},
        target={"objects": "https://s3/bucket", "index": "mongodb://m/db", "events": "kafka://k"},
        objects=30,
        size_bytes=5 << 20,
        missing=20,
        missing_bytes=3 << 20,
        free_bytes=None,
        studies=4,
        indexed=21,
        instances=22,
        events=17,
        waiting=Waiting(outbox=2, unread={"indexer.instances": 5}, receiving=1, dead_letters=3),
    )


def a_report() -> Report:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Report(
        source=a_plan().source,
        target=a_plan().target,
        fingerprint="f" * 26,
        started_at=when,
        finished_at=when,
        release="0.1.0",
        read_back=False,
        waiting=Waiting(receiving=1),
        objects=Comparison(),
        index=RecordComparison(),
        events=[TopicTally("imaging.study.v1", 7, 7, equal=True, digest="ab" * 32)],
        keys=KeyTally(source=4, target=4, missing=0),
        copied=Copied(objects=3, size_bytes=1 << 20),
        events_copied=9,
        index_rebuilt=True,
    )


def test_a_plan_says_what_waits_and_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    commands_migrate._show_plan(a_plan())

    text = capsys.readouterr().out
    for words in (
        "https://s3/bucket",
        "3.0 MiB, free: not known",
        "21 in the index",
        "isocenter reindex",
        "2 events in the outbox, indexer.instances has 5 events to read",
    ):
        assert words in text


def test_a_report_says_that_both_sides_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    commands_migrate._show(a_report())

    text = capsys.readouterr().out
    assert "moved 3 objects (1.0 MiB) and 9 events; the index was rebuilt" in text
    assert "1 studies are still receiving" in text
    assert text.endswith("equal\n")
    assert "not equal" not in text


def test_a_report_names_what_is_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults()
    faults.add("damaged", "instances/a/abc")
    report = replace(
        a_report(), objects=Comparison(faults=faults), index=RecordComparison(differing=1, named=["study"])
    )

    commands_migrate._show(report)

    out, err = capsys.readouterr()
    assert out.endswith("not equal\n")
    assert "damaged instances/a/abc" in err
    assert "differs in the index study" in err


def test_what_was_found_is_signed_kept_and_the_exit_code(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)
    different = replace(a_report(), index=RecordComparison(differing=1, named=["study"]))

    async def verify(_: Migration) -> Report:
        return different

    monkeypatch.setattr(Migration, "verify", verify)
    arguments = ["migrate", "up", "--verify-only", "--json", "--data-dir", str(data_dir)]
    done = CliRunner().invoke(command_line(arguments), arguments)

    assert Exit.REFUSED == done.exit_code
    (path,) = data_dir.glob("migration-*.json")
    assert json.loads(done.stdout) == json.loads(path.read_text())
    document = json.loads(path.read_text())
    assert not document["equal"]
    assert document["seal"]
    assert SiteKeys.load(data_dir / "keys" / "site.key").fingerprint() != document["seal"]
