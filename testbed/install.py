"""Brings every server of the test bed to this machine ahead of the tests: `python -m testbed.install`.

With `--builds` also what is compiled from source, minutes of it: Jaeger and Helm.
Exits 0 also where one cannot be had: the tests then say loudly what they did not run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from testbed import helm, kafka, mongo, network, radosgw, stand_ins
from testbed.cache import apt_install
from testbed.server import ServerUnavailable


def main() -> int:
    wanted: dict[str, Callable[[], object]] = {
        "Apache Kafka": kafka.install,
        "mongod": mongo.install,
        "Ceph radosgw": lambda: apt_install(*radosgw.PACKAGES),
        "packet filter": network.prepare,
    }
    if "--builds" in sys.argv[1:]:
        wanted |= {
            "Prometheus": lambda: apt_install("prometheus"),
            "Helm": helm.helm,
            "Jaeger": stand_ins.build_jaeger,
        }
    for name, install in wanted.items():
        began = time.monotonic()
        try:
            install()
        except ServerUnavailable as error:
            print(f"test bed: !!! {name}: {error} - what needs it will not run !!!", flush=True)
        else:
            print(f"test bed: {name} is here ({time.monotonic() - began:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
