"""What storage commitment says of instances, asked over HTTP (PS3.18 chapter 13)."""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.embedded import Embedded

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
"""What the sender of the load sends."""
PROCESSING_FAILURE = 0x0110
NO_SUCH_OBJECT_INSTANCE = 0x0112
_SECONDS, _SECONDS_EACH = 60.0, 0.02
"""For the answer: everything asked for is read back."""
_COMMITTED, _FAILED, _CLASS, _INSTANCE, _REASON = "00081199", "00081198", "00081150", "00081155", "00081197"


@dataclass(frozen=True, slots=True)
class Answer:
    """SOP Instance UIDs that are committed, and the Failure Reason (PS3.3 C.14.1.1) of the others."""

    committed: set[str]
    failed: dict[str, int]


def ask(platform: Embedded, sops: Iterable[str], sop_class_uid: str = CT_IMAGE_STORAGE) -> Answer:
    """Asks, and asks again until the answer is there."""
    path = f"/dicom-web/commitment-requests/2.25.{secrets.randbits(100)}"
    items = [
        {
            _CLASS: {"vr": "UI", "Value": [sop_class_uid]},
            _INSTANCE: {"vr": "UI", "Value": [sop]},
        }
        for sop in sops
    ]
    status, body = _request(platform, "POST", path, json.dumps({_COMMITTED: {"vr": "SQ", "Value": items}}))
    deadline = time.monotonic() + _SECONDS + _SECONDS_EACH * len(items)
    while status == http.client.ACCEPTED and time.monotonic() < deadline:
        time.sleep(0.2)
        status, body = _request(platform, "GET", path)
    if status != http.client.OK:
        raise AssertionError(f"answered {status}: {body[:300]!r}")
    found: dict[str, Any] = json.loads(body)
    failed = found.get(_FAILED, {}).get("Value", [])
    return Answer(
        {item[_INSTANCE]["Value"][0] for item in found.get(_COMMITTED, {}).get("Value", [])},
        {item[_INSTANCE]["Value"][0]: item[_REASON]["Value"][0] for item in failed},
    )


def _request(platform: Embedded, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", platform.http_port, timeout=60)
    try:
        headers = {"Content-Type": "application/dicom+json", "Accept": "application/dicom+json"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
