"""What goes over the node agent's socket: one JSON object a line, requests numbered by who asks.

    -> {"id": 1, "op": "open", "target": "<study or series>", "stage": true}
    <- {"id": 1, "ok": {"leases": [{"lease": "...", "name": "...", "path": "/..."}]}}
    <- {"id": 1, "error": {"code": "not-found", "message": "..."}}

Leases belong to the connection: they last as long as it does, so that a process that dies gives them back.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from isocenter.common.errors import IsocenterError, Misconfigured, Permanent

VERSION: Final = 1
LIMIT: Final = 16 << 20
"""Bytes of a line."""
_PATH_BYTES: Final = 100
"""A socket's path has at most 107 bytes (unix(7))."""


class ProtocolError(Permanent):
    """What came is no message of this protocol."""

    code = "protocol"


class AgentError(IsocenterError):
    """The agent refused. `code` is that of the error it met."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # of one error, not of the class


def socket_path(data_dir: Path) -> Path:
    """Where the agent of a data directory listens. Server and client ask the same function."""
    path = data_dir.absolute() / "run" / "stager.sock"
    if len(os.fsencode(path)) <= _PATH_BYTES:
        return path
    short = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    # Not TMPDIR: it may be as long, and another in the client. `require_own` looks whose the folder is.
    return Path("/tmp") / f"isocenter-{os.getuid()}" / f"{short}.sock"  # noqa: S108 - see above


def require_own(path: Path) -> None:
    """Whoever can write the socket's folder can put another socket there.

    Raises:
        Misconfigured: others can, or it belongs to somebody else.
        OSError: it is not there.
    """
    found = path.parent.stat()
    if found.st_uid not in {0, os.getuid()} or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Misconfigured("the folder of the stager's socket belongs to others, or they can write it")


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raises ProtocolError."""
    try:
        message = json.loads(line)
    except ValueError:
        raise ProtocolError("a line is no JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("a line is no object")
    return message
