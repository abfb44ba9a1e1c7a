"""Proves the walls: a service imports `isocenter.common` and itself, and lives without the others.

1. Reads every import of every member: a service may name `isocenter.common` and itself, the common library
   itself only.
2. Installs each service alone into a fresh environment, imports all of its modules there and collects its
   unit tests. With `--static` only the first.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMON = "isocenter.common"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the uv to install with")
    parser.add_argument("--static", action="store_true", help="read imports only, install nothing")
    arguments = parser.parse_args()
    services = sorted(
        path.name for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists()
    )
    problems = list(breaches(ROOT, services))
    for problem in problems:
        print(problem)
    if not problems:
        print(f"walls: no import crosses ({', '.join(services)})")
    if not arguments.static and not problems:
        problems = [name for name in services if not stands_alone(name, arguments.uv)]
    return 1 if problems else 0


def breaches(root: Path, services: list[str]) -> Iterator[str]:
    """`file:line: imports what it may not`."""
    allowed = {root / "libs/common/src": {COMMON}}
    for name in services:
        package = f"isocenter.{name.replace('-', '_')}"
        allowed[root / "services" / name / "src"] = {COMMON, package}
    for source, names in allowed.items():
        for path in sorted(source.rglob("*.py")):
            for line, module in imports(path):
                if module.split(".")[0] == "isocenter" and ".".join(module.split(".")[:2]) not in names:
                    yield f"{path.relative_to(root)}:{line}: imports {module}, beyond its walls"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Absolute names of what a file imports; `from isocenter import x` counts as `isocenter.x`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "isocenter":
                for alias in node.names:
                    yield node.lineno, f"isocenter.{alias.name}"
            else:
                yield node.lineno, node.module


def stands_alone(name: str, uv: str) -> bool:
    """Installs one service without the others, imports all of it, and collects its tests."""
    package = f"isocenter.{name.replace('-', '_')}"
    with tempfile.TemporaryDirectory(prefix="isocenter-walls-") as scratch:
        environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": scratch, "VIRTUAL_ENV": scratch}
        python = f"{scratch}/bin/python"
        quiet = ["--quiet", "--locked"]
        steps = [
            [uv, "sync", *quiet, "--package", f"isocenter-{name}", "--no-default-groups"],
            [uv, "export", *quiet, "--only-group", "dev", "--no-hashes", "-o", f"{scratch}/dev.txt"],
            [uv, "pip", "install", "--quiet", "--python", python, "-r", f"{scratch}/dev.txt"],
            [python, "-c", _IMPORT_ALL, package, COMMON],
        ]
        tests = ROOT / "services" / name / "tests"
        if any(tests.rglob("test_*.py")):
            steps.append(
                [python, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", str(tests)]
            )
        for step in steps:
            done = subprocess.run(
                step, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                output = (done.stdout + done.stderr)[-3000:]
                print(f"walls: {name} does not stand alone: {' '.join(step[:5])}\n{output}")
                return False
    print(f"walls: {name} stands alone")
    return True


_IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
beside = {"isocenter." + each.name for each in pkgutil.iter_modules(__import__("isocenter").__path__)}
if beside - set(sys.argv[1:]):
    sys.exit(f"installed beside it: {beside - set(sys.argv[1:])}")
"""

if __name__ == "__main__":
    sys.exit(main())
