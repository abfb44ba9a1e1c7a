"""`python -m isocenter.gpu_stager`."""

from __future__ import annotations

import sys

from isocenter.common.runtime import run_service
from isocenter.gpu_stager.app import NAME, build
from isocenter.gpu_stager.settings import GpuStagerSettings

if __name__ == "__main__":
    sys.exit(run_service(NAME, build, GpuStagerSettings))
