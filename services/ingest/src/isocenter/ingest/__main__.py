"""`python -m isocenter.ingest`."""

import os
import sys

from isocenter.common.runtime import run_service
from isocenter.ingest.app import NAME, build
from isocenter.ingest.processes.supervisor import supervise
from isocenter.ingest.processes.worker import WORKER, die_with
from isocenter.ingest.settings import IngestSettings


def main(arguments: list[str]) -> int:
    """The exit status."""
    if arguments[:1] == [WORKER]:
        die_with(int(arguments[1]))
    # Other values, and wrong ones, are for the one who reads all the settings.
    elif os.environ.get(IngestSettings.variable("processes"), "1").strip() not in {"", "1"}:
        return supervise()
    return run_service(NAME, build, IngestSettings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
