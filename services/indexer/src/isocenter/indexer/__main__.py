"""`python -m isocenter.indexer`."""

from __future__ import annotations

import sys

from isocenter.common.runtime import run_service
from isocenter.indexer.app import NAME, build
from isocenter.indexer.settings import IndexerSettings

if __name__ == "__main__":
    sys.exit(run_service(NAME, build, IndexerSettings))
