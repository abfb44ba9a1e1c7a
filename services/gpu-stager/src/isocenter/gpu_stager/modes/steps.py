"""The probe's child: tries one thing after another and says after each how it went.

    python -m isocenter.gpu_stager.modes.steps FOLDER

Each line is a JSON object. The parent kills it when it hangs, and knows from the last line in what: some of
these calls spin in native code where no Python can interrupt them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from isocenter.gpu_stager.modes.environment import prepare

PROBE_BYTES: Final = 8 << 20
STEPS: Final = ("cupy", "device", "copy", "kvikio", "compat", "gds-present", "gds")
"""In order. `gds` is tried only where `gds-present` finds what it needs."""


def say(step: str, *, ok: bool, **facts: Any) -> None:
    print(json.dumps({"step": step, "ok": ok, **facts}), flush=True)  # noqa: T201 - this is its output


def cupy(folder: Path) -> dict[str, Any]:
    import cupy  # noqa: PLC0415

    return {"version": cupy.__version__}


def device(folder: Path) -> dict[str, Any]:
    import cupy  # noqa: PLC0415

    if not cupy.cuda.is_available():
        raise RuntimeError("no CUDA device, or its driver is too old")
    found = []
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        uuid = properties.get("uuid", b"")
        name = properties.get("name", b"")
        found.append(
            {
                "index": index,
                "uuid": uuid.hex() if isinstance(uuid, bytes) else str(uuid),
                "name": name.decode(errors="replace") if isinstance(name, bytes) else str(name),
                "total_bytes": int(properties.get("totalGlobalMem", 0)),
            }
        )
    runtime = cupy.cuda.runtime
    return {
        "devices": found,
        "driver": str(runtime.driverGetVersion()),
        "cuda": str(runtime.runtimeGetVersion()),
    }


def copy(folder: Path) -> dict[str, Any]:
    import cupy  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    data = np.arange(PROBE_BYTES // 4, dtype=np.uint32)
    if not np.array_equal(cupy.asnumpy(cupy.asarray(data)), data):
        raise RuntimeError("what came back from the device is not what went there")
    return {}


def kvikio(folder: Path) -> dict[str, Any]:
    import kvikio  # noqa: PLC0415
    import kvikio.defaults  # noqa: PLC0415

    return {"version": str(kvikio.__version__)}


def compat(folder: Path) -> dict[str, Any]:
    return _round_trip(folder)


def gds_present(folder: Path) -> dict[str, Any]:
    """Without these files cuFile spins for ever, looking for them."""
    modules = Path("/proc/modules")
    if not modules.exists():
        raise RuntimeError("/proc/modules is missing: cuFile would hang")
    if "nvidia_fs" in modules.read_text():
        return {"way": "gds-nvfs"}
    gdscheck = shutil.which("gdscheck") or shutil.which("gdscheck.py")
    if gdscheck is None:
        raise RuntimeError("the module nvidia-fs is not loaded, and there is no gdscheck to tell of P2PDMA")
    told = subprocess.run([gdscheck, "-p"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    if not any("p2pdma" in line.lower() and "supported" in line.lower() for line in told.splitlines()):
        raise RuntimeError("neither nvidia-fs nor P2PDMA")
    return {"way": "gds-p2pdma"}


def gds(folder: Path) -> dict[str, Any]:
    import kvikio  # noqa: PLC0415
    import kvikio.defaults  # noqa: PLC0415

    with kvikio.defaults.set("compat_mode", kvikio.CompatMode.OFF):
        return _round_trip(folder)


def _round_trip(folder: Path) -> dict[str, Any]:
    import cupy  # noqa: PLC0415
    import kvikio  # noqa: PLC0415

    path = folder / "probe"
    data = cupy.arange(PROBE_BYTES // 4, dtype=cupy.uint32)
    with kvikio.CuFile(str(path), "w") as file:
        file.write(data)
    back = cupy.empty_like(data)
    with kvikio.CuFile(str(path), "r") as file:
        if file.read(back) != PROBE_BYTES:
            raise RuntimeError("a short read")
    if not bool((back == data).all()):
        raise RuntimeError("what was read is not what was written")
    return {}


RUN: Final[dict[str, Callable[[Path], dict[str, Any]]]] = {
    "cupy": cupy,
    "device": device,
    "copy": copy,
    "kvikio": kvikio,
    "compat": compat,
    "gds-present": gds_present,
    "gds": gds,
}


def main(folder: Path) -> int:
    prepare(os.environ, folder)
    for step in STEPS:
        say(step, ok=False, begun=True)
        try:
            facts = RUN[step](folder)
        except Exception as error:  # noqa: BLE001 - a library's failure at import may be of any kind
            say(step, ok=False, error=type(error).__name__, detail=str(error)[:200])
            return 0
        say(step, ok=True, **facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
