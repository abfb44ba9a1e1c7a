"""`python -m isocenter.ingest`."""

import sys

from isocenter.common.runtime import run_service
from isocenter.ingest.app import NAME, build
from isocenter.ingest.settings import IngestSettings

if __name__ == "__main__":
    sys.exit(run_service(NAME, build, IngestSettings))
