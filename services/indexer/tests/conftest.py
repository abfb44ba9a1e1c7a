from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from isocenter.indexer.testing import Site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = await Site.open(tmp_path)
    yield site
    await site.close()
