"""Bills of materials of the images: CycloneDX 1.5, one file per image, in deploy/sbom.

    python scripts/sbom.py [--uv PATH] [SERVICE...]

The Python packages come from uv's export of the lock (with the digests of what was published) and are held
against what the image really has; those of Debian from the image's own dpkg. What is in the image and
not in the lock, or in another version, ends this with an error. Images are built before: `make images`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

REPOSITORY = Path(__file__).resolve().parents[1]
SERVICES = ("ingest", "indexer", "gateway", "cli")
TAG = "0.1.0"
_PYTHON = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
_DEBIAN = "${Package} ${Version} ${Architecture} ${db:Status-Status}\n"


def bill(service: str, image: str, uv: str) -> dict[str, Any]:
    """Raises SystemExit: image and lock do not agree. CalledProcessError: uv or Docker failed."""
    package = "isocenter" if service == "cli" else f"isocenter-{service}"
    document: dict[str, Any] = json.loads(
        _output(
            uv, "export", "--quiet", "--locked", "--no-default-groups", "--package", package,
            "--format", "cyclonedx1.5", "--preview-features", "sbom-export",
        )
    )  # fmt: skip
    present = {
        _normal(name): version for name, version in map(str.split, _inside(image, "python", "-c", _PYTHON))
    }
    ours = document["metadata"]["component"]
    locked = {(_normal(one["name"]), one["version"]) for one in (ours, *document["components"])}
    strangers = sorted(
        f"{name} {version}" for name, version in present.items() if (name, version) not in locked
    )
    if strangers:
        raise SystemExit(f"{image} has what the lock has not: {', '.join(strangers)}")
    # The lock is for every platform; the image has one.
    kept = [one for one in document["components"] if _normal(one["name"]) in present]
    debian = _debian(image)
    document["components"] = kept + debian
    known = {one["bom-ref"] for one in (ours, *document["components"])}
    document["dependencies"] = [
        {**one, "dependsOn": [ref for ref in one.get("dependsOn", ()) if ref in known]}
        for one in document.get("dependencies", ())
        if one["ref"] in known
    ]
    document["metadata"]["properties"] = [
        {"name": "isocenter:image", "value": image},
        {
            "name": "isocenter:image:id",
            "value": _output("docker", "image", "inspect", "-f", "{{.Id}}", image).strip(),
        },
    ]
    return document


def _debian(image: str) -> list[dict[str, Any]]:
    rows = [line.split() for line in _inside(image, "dpkg-query", "--show", f"--showformat={_DEBIAN}")]
    release = _inside(image, "python", "-c", "print(open('/etc/os-release').read())")
    number = next(line.partition("=")[2].strip('"') for line in release if line.startswith("VERSION_ID="))
    distro = f"debian-{number}"
    return [
        {
            "type": "library",
            "bom-ref": f"deb:{name}:{architecture}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}&distro={distro}",
        }
        for name, version, architecture, status in rows
        if status == "installed"
    ]


def _inside(image: str, program: str, *arguments: str) -> list[str]:
    command = ("docker", "run", "--rm", "--network=none", f"--entrypoint={program}", image, *arguments)
    return [line for line in _output(*command).splitlines() if line]


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    parser = argparse.ArgumentParser(description="CycloneDX bills of materials of the images")
    parser.add_argument("services", nargs="*", default=SERVICES, metavar="SERVICE")
    parser.add_argument("--uv", default="uv")
    parser.add_argument("--tag", default=TAG)
    parser.add_argument("--into", type=Path, default=REPOSITORY / "deploy" / "sbom")
    chosen = parser.parse_args()
    chosen.into.mkdir(parents=True, exist_ok=True)
    for service in chosen.services:
        try:
            document = bill(service, f"isocenter-{service}:{chosen.tag}", chosen.uv)
        except subprocess.CalledProcessError as error:
            print(f"{' '.join(error.cmd[:3])}: {error.stderr[-600:]}", file=sys.stderr)
            return 1
        path = chosen.into / f"isocenter-{service}.cdx.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
        print(f"{path}: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
