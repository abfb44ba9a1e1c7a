"""Makes the replica set, its administrator and the platform's user; safe to repeat.

Runs in mongod's own network namespace: until the first user exists, a client on loopback may make one, and
that one only. User and password of the platform are those of the connection string of its services.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.uri_parser import parse_uri

SECRETS = Path("/run/secrets")
ADMINISTRATOR = "administrator"
UNAUTHORIZED = 13
AUTHENTICATION_FAILED = 18
ALREADY_INITIALIZED = 23
SECONDS = 60.0

Client = MongoClient[dict[str, Any]]


def main() -> int:
    wanted = parse_uri((SECRETS / "isocenter_mongo_uri").read_text().strip())
    host, port = wanted["nodelist"][0]
    with _client(port) as client:
        member = {"_id": 0, "host": f"{host}:{port}"}
        initiate = {"_id": wanted["options"]["replicaSet"], "members": [member]}
        # Once there are users, a stranger may not even ask.
        _unless({ALREADY_INITIALIZED, UNAUTHORIZED}, client, "replSetInitiate", initiate)
        _wait_for_primary(client)
    administrator = {
        "username": ADMINISTRATOR,
        "password": (SECRETS / "mongo_administrator_password").read_text().strip(),
        "authSource": "admin",
    }
    if not _can_sign_in(port, administrator):
        with _client(port) as client:
            password = administrator["password"]
            client.admin.command("createUser", ADMINISTRATOR, pwd=password, roles=["userAdminAnyDatabase"])
    # Index and parked events are one database; services make their indexes at start.
    database = os.environ["ISOCENTER_MONGO_DATABASE"]
    rights = [{"role": role, "db": database} for role in ("readWrite", "dbAdmin")]
    with _client(port, **administrator) as client:
        known = client.admin.command("usersInfo", wanted["username"])["users"]
        command = "updateUser" if known else "createUser"
        client.admin.command(command, wanted["username"], pwd=wanted["password"], roles=rights)
    return 0


def _client(port: int, **options: Any) -> Client:
    return MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=30_000, **options)


def _unless(codes: set[int], client: Client, command: str, value: object) -> None:
    try:
        client.admin.command(command, value)
    except OperationFailure as error:
        if error.code not in codes:
            raise


def _wait_for_primary(client: Client) -> None:
    until = time.monotonic() + SECONDS
    while not client.admin.command("hello").get("isWritablePrimary"):
        if time.monotonic() > until:
            raise TimeoutError(f"no primary within {SECONDS:.0f} s")
        time.sleep(0.1)


def _can_sign_in(port: int, user: dict[str, str]) -> bool:
    try:
        with _client(port, **user) as client:
            client.admin.command("connectionStatus")
    except OperationFailure as error:
        if error.code != AUTHENTICATION_FAILED:
            raise
        return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OperationFailure as error:
        sys.exit(f"mongo-init: {(error.details or {}).get('codeName', error.code)}")
    except (PyMongoError, TimeoutError) as error:
        sys.exit(f"mongo-init: {type(error).__name__}: {error}")
