"""The conformance suite runs over every backend that `OPENERS` names."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from isocenter.common.index.ports import Index
from isocenter.common.index.sqlite import SqliteIndex

Reopen = Callable[[], Awaitable[Index]]


async def open_sqlite(path: Path) -> Index:
    return await SqliteIndex.open(path / "index.sqlite", default_issuer="SITE")


OPENERS: dict[str, Callable[[Path], Awaitable[Index]]] = {"sqlite": open_sqlite}


@pytest.fixture(params=sorted(OPENERS))
async def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Reopen]:
    """Opens the same index again, as often as asked; all of them are closed at the end."""
    opened: list[Index] = []

    async def open_again() -> Index:
        opened.append(await OPENERS[request.param](tmp_path))
        return opened[-1]

    yield open_again
    for index in opened:
        await index.close()


@pytest.fixture
async def index(reopen: Reopen) -> Index:
    return await reopen()


@pytest.fixture(scope="session", params=sorted(OPENERS))
def opener(request: pytest.FixtureRequest) -> Callable[[Path], Awaitable[Index]]:
    """For tests that run an event loop of their own."""
    return OPENERS[request.param]
