from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from isocenter.cli.errors import EXIT_TABLE, CommandError, Exit
from isocenter.cli.main import COMMANDS, command_line

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isocenter.cli", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_command_says(name: str) -> None:
    """The list is written apart, so that it can be shown without importing every library."""
    module, line = COMMANDS[name]
    root = typer.Typer()
    importlib.import_module(f"isocenter.cli.{module}").register(root)

    if root.registered_groups:
        (group,) = root.registered_groups
        assert group.typer_instance is not None
        told = group.typer_instance.info.help
    else:
        (command,) = root.registered_commands
        assert command.callback is not None
        told = (command.callback.__doc__ or "").splitlines()[0]
        assert command.epilog
        assert "Examples" in command.epilog

    assert line == told


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys; from isocenter.cli.main import command_line; command_line(['--help']);"
        "heavy = {'numpy', 'pydicom', 'pynetdicom', 'faststream', 'httpx', 'uvicorn'} & set(sys.modules);"
        "print(sorted(heavy))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (0, "[]\n") == (done.returncode, done.stdout), done.stderr


def test_help_lists_commands_and_exit_codes() -> None:
    done = _run("--help")

    assert 0 == done.returncode
    for name in COMMANDS:
        assert name in done.stdout
    assert "70 a bug" in " ".join(done.stdout.split())


def test_every_exit_code_is_documented() -> None:
    documented = {int(line.split()[0]) for line in EXIT_TABLE.splitlines()}

    assert documented == {code.value for code in Exit}


def test_version() -> None:
    assert "isocenter 0." in _run("--version").stdout


@pytest.mark.parametrize(
    "arguments", [("no-such-command",), ("send",), ("send", "/no/such/file"), ("dlq", "replay")]
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)

    assert Exit.USAGE == done.returncode
    assert "" == done.stdout
    assert "Traceback" not in done.stderr


def test_no_platform_is_one_line_and_what_to_do(tmp_path: Path) -> None:
    done = _run("studies", "--data-dir", str(tmp_path / "none"))

    assert Exit.NOT_FOUND == done.returncode
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: no platform has run in")
    assert "isocenter up" in hint


def test_nobody_to_send_to_is_one_line_and_what_to_do(tmp_path: Path, package: Path) -> None:
    done = _run(
        "send", str(package / "CT_small.dcm"), "--to", "127.0.0.1:1", "--data-dir", str(tmp_path / "none")
    )

    assert Exit.UNREACHABLE == done.returncode
    assert 2 == len(done.stderr.splitlines())


def test_only_the_named_command_is_loaded() -> None:
    root = command_line(["synth-ct", "--help"])

    assert ["synth-ct"] == [command.name for command in root.registered_commands]


def test_without_the_stager_its_commands_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=f"isocenter.gpu_stager.{name}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(CommandError, match="not part of this installation") as refused:
        command_line(["stage"])
    assert "staging" in refused.value.hint
