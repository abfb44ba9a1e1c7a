"""Writes what `deploy/compose.yaml` asks for and git must not hold: secrets, and `.env`. Safe to repeat.

    python deploy/compose/prepare.py [FOLDER]

Without FOLDER, secrets are in deploy/.secrets and `.env` is beside compose.yaml, where compose looks for it;
with one, both are in it. Secrets are closed to all but the user that the containers run as: whoever calls
this, or 10001 when root does. What is there stays: a new site key would be another archive, a new wrapping
key would open no object of this one.
Standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[1]
USER_OF_IMAGE = 10001


def _uri() -> bytes:
    password = secrets.token_urlsafe(24)
    return f"mongodb://isocenter:{password}@mongo:27017/?replicaSet=rs0&authSource=admin".encode()


SECRETS: dict[str, Callable[[], bytes]] = {
    "site_key": lambda: secrets.token_bytes(32),
    "wrapping_key": lambda: secrets.token_bytes(32),
    "isocenter_mongo_uri": _uri,
    "mongo_key_file": lambda: base64.b64encode(secrets.token_bytes(96)),
    "mongo_administrator_password": lambda: secrets.token_urlsafe(24).encode(),
    "isocenter_s3_access_key": lambda: secrets.token_hex(10).upper().encode(),
    "isocenter_s3_secret_key": lambda: secrets.token_urlsafe(30).encode(),
    "grafana_admin_password": lambda: secrets.token_urlsafe(18).encode(),
}


def user_and_group() -> tuple[int, int]:
    """Who the services run as, so that they, and nobody else, can read the files."""
    return (os.getuid(), os.getgid()) if os.getuid() else (USER_OF_IMAGE, USER_OF_IMAGE)


def write_secrets(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    user, group = user_and_group()
    for name, make in SECRETS.items():
        path = folder / name
        if path.exists():
            continue
        partial = folder / f".{name}.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(make())
            out.flush()
            os.fsync(descriptor)
        if os.getuid() == 0:
            os.chown(partial, user, group)
        partial.rename(path)


def environment(folder: Path) -> str:
    """What compose substitutes; nothing of it is secret."""
    user, group = user_and_group()
    return f"ISOCENTER_UID={user}\nISOCENTER_GID={group}\nISOCENTER_SECRETS={folder}\n"


def main(secrets_folder: Path, env_file: Path) -> None:
    write_secrets(secrets_folder)
    if not env_file.exists():
        env_file.write_text(environment(secrets_folder))
        env_file.chmod(0o600)


if __name__ == "__main__":
    if sys.argv[1:]:
        target = Path(sys.argv[1]).resolve()
        main(target / "secrets", target / ".env")
    else:
        main(DEPLOY / ".secrets", DEPLOY / ".env")
