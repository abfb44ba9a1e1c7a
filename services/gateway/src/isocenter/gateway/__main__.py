"""`python -m isocenter.gateway`."""

import sys

from isocenter.common.runtime import run_service
from isocenter.gateway.app import build
from isocenter.gateway.settings import GatewaySettings

if __name__ == "__main__":
    sys.exit(run_service("gateway", build, GatewaySettings))
