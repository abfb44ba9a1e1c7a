"""Makes the replica set and the platform's user; safe to repeat.

Runs in mongod's own network namespace: until the first user exists, only a client on loopback may make one.
User, password and database are those of the connection string that the services are given.
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

URI = Path("/run/secrets/isocenter_mongo_uri")
ALREADY_INITIALIZED = 23
UNAUTHORIZED = 13
AUTHENTICATION_FAILED = 18
SECONDS = 60.0


def main() -> int:
    wanted = parse_uri(URI.read_text().strip())
    host, port = wanted["nodelist"][0]
    user, password = wanted["username"], wanted["password"]
    with _client(port) as client:
        try:
            member = {"_id": 0, "host": f"{host}:{port}"}
            client.admin.command(
                "replSetInitiate", {"_id": wanted["options"]["replicaset"], "members": [member]}
            )
        except OperationFailure as error:
            # Once there are users, a stranger may not even ask.
            if error.code not in {ALREADY_INITIALIZED, UNAUTHORIZED}:
                raise
        _wait_for_primary(client)
    if _can_sign_in(port, user, password):
        print("the replica set and its user are there")  # noqa: T201
        return 0
    with _client(port) as client:
        # Index and parked events are one database; services make their indexes at start.
        roles = [
            {"role": role, "db": os.environ["ISOCENTER_MONGO_DATABASE"]} for role in ("readWrite", "dbAdmin")
        ]
        client.admin.command("createUser", user, pwd=password, roles=roles)
    print("made the replica set and its user")  # noqa: T201 - what a one-shot says
    return 0


def _client(port: int, **options: Any) -> MongoClient[dict[str, Any]]:
    return MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=30_000, **options)


def _wait_for_primary(client: MongoClient[dict[str, Any]]) -> None:
    until = time.monotonic() + SECONDS
    while not client.admin.command("hello").get("isWritablePrimary"):
        if time.monotonic() > until:
            raise TimeoutError(f"no primary within {SECONDS:.0f} s")
        time.sleep(0.1)


def _can_sign_in(port: int, user: str, password: str) -> bool:
    try:
        with _client(port, username=user, password=password, authSource="admin") as client:
            client.admin.command("connectionStatus")
    except OperationFailure as error:
        if error.code != AUTHENTICATION_FAILED:
            raise
        return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (PyMongoError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
