"""The page of results: each benchmark replaces its own part and leaves the others."""

from __future__ import annotations

from pathlib import Path

_TITLE = (
    "# Results\n\nWritten by the benchmarks; each part says which command wrote it. Do not edit by hand.\n"
)


def replace_part(path: Path, name: str, command: str, text: str) -> None:
    """`text` becomes the part `name` of the page, at the end if there was none."""
    begin, end = f"<!-- {name}: written by {command} -->", f"<!-- /{name} -->"
    page = path.read_text() if path.exists() else _TITLE
    part = f"{begin}\n{text}{end}\n"
    if begin in page:
        before, rest = page.split(begin, 1)
        page = before + part + rest.split(end + "\n", 1)[1]
    else:
        page = f"{page}\n{part}"
    path.write_text(page)
