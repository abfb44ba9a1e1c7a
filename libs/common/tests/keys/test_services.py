"""Wrapping by a service: the transit engine of OpenBao or Vault, and AWS KMS.

The servers here are doubles that keep a real key and follow the published interface; neither service could be
had. What they prove is the client: what it sends, what it makes of each answer, and what it never says.
"""

from __future__ import annotations

import base64
import http.server
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from isocenter.common.errors import KeysUnavailable, KeyUnusable, Misconfigured
from isocenter.common.keys.kms import AwsKms
from isocenter.common.keys.open import open_wrapper
from isocenter.common.keys.ports import KeyWrapper, WrappedKey
from isocenter.common.keys.sqlite import SqliteKeyTable
from isocenter.common.keys.transit import Transit
from isocenter.common.settings import KeySettings

SECRET = bytes(range(32))
ROW = WrappedKey("study-key", "key-id", "default", b"", "", datetime(2026, 1, 1, tzinfo=UTC))
TOKEN = "token-of-the-test"  # noqa: S105 - a double's
ARN = "arn:aws:kms:eu-central-1:000000000000:key/11111111-2222-3333-4444-555555555555"


class Engine:
    """A transit engine with one key of as many versions as it was rotated."""

    def __init__(self) -> None:
        self.versions = [AESGCM(os.urandom(32))]
        self.answer: int | None = None
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if self.answer is not None:
            return httpx.Response(self.answer, json={"errors": ["as asked"]})
        if request.headers.get("X-Vault-Token") != TOKEN:
            return httpx.Response(403, json={"errors": ["permission denied"]})
        body = json.loads(request.content or b"{}")
        if request.url.path == "/v1/transit/keys/isocenter":
            return httpx.Response(200, json={"data": {"latest_version": len(self.versions)}})
        beside = base64.b64decode(body["associated_data"])
        if request.url.path == "/v1/transit/encrypt/isocenter":
            nonce = os.urandom(12)
            sealed = nonce + self.versions[-1].encrypt(nonce, base64.b64decode(body["plaintext"]), beside)
            text = f"vault:v{len(self.versions)}:{base64.b64encode(sealed).decode()}"
            return httpx.Response(200, json={"data": {"ciphertext": text}})
        _, version, text = body["ciphertext"].split(":")
        sealed = base64.b64decode(text)
        try:
            plain = self.versions[int(version[1:]) - 1].decrypt(sealed[:12], sealed[12:], beside)
        except InvalidTag:
            return httpx.Response(400, json={"errors": ["cipher: message authentication failed"]})
        return httpx.Response(200, json={"data": {"plaintext": base64.b64encode(plain).decode()}})


def with_token(url: str) -> KeySettings:
    return KeySettings(wrapper="transit", transit_url=url, transit_token=SecretStr(TOKEN))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def transit(engine: Engine) -> AsyncIterator[Transit]:
    made = Transit(
        KeySettings(
            wrapper="transit", transit_url="https://bao.example:8200", transit_token=SecretStr(TOKEN)
        ),
        httpx.MockTransport(engine),
    )
    yield made
    await made.close()


async def wrapped(wrapper: KeyWrapper) -> WrappedKey:
    data, name = await wrapper.wrap(SECRET, ROW.binding)
    return replace(ROW, wrapped=data, wrapper=name)


async def test_transit_wraps_and_unwraps(transit: Transit) -> None:
    row = await wrapped(transit)

    assert SECRET == await transit.unwrap(row)
    assert await transit.current() == row.wrapper == "transit:transit/isocenter:v1"
    assert SECRET not in row.wrapped


async def test_transit_binds_the_row(transit: Transit) -> None:
    row = await wrapped(transit)
    with pytest.raises(KeyUnusable):
        await transit.unwrap(replace(row, study_key="another"))


async def test_a_new_version_of_the_transit_key_is_seen(transit: Transit, engine: Engine) -> None:
    row = await wrapped(transit)
    engine.versions.append(AESGCM(os.urandom(32)))

    assert await transit.current() != row.wrapper
    assert SECRET == await transit.unwrap(row)


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, Misconfigured), (404, Misconfigured), (500, KeysUnavailable), (503, KeysUnavailable)],
)
async def test_what_the_engine_answers(
    transit: Transit, engine: Engine, status: int, error: type[Exception]
) -> None:
    row = await wrapped(transit)
    engine.answer = status
    with pytest.raises(error) as raised:
        await transit.unwrap(row)
    assert TOKEN not in str(raised.value)


async def test_an_engine_that_does_not_answer_is_waited_for() -> None:
    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    settings = KeySettings(
        wrapper="transit", transit_url="https://bao.example", transit_token=SecretStr(TOKEN)
    )
    transit = Transit(settings, httpx.MockTransport(dead))
    with pytest.raises(KeysUnavailable):
        await transit.current()
    await transit.close()


async def test_a_token_file_is_read_for_each_request(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "token"
    path.write_text("expired\n")
    path.chmod(0o600)
    transit = Transit(
        KeySettings(wrapper="transit", transit_url="https://bao.example", transit_token_file=path),
        httpx.MockTransport(engine),
    )
    with pytest.raises(Misconfigured):
        await transit.current()
    path.write_text(f"{TOKEN}\n")
    await transit.current()
    await transit.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"transit_url": None, "transit_token": SecretStr(TOKEN)},
        {"transit_url": "https://bao.example"},
        {"transit_url": "https://bao.example", "transit_token_file": Path("/nowhere")},
    ],
    ids=["no url", "no token", "no such file"],
)
def test_transit_without_what_it_needs(settings: dict[str, Any]) -> None:
    with pytest.raises(Misconfigured):
        Transit(KeySettings(wrapper="transit", **settings))


class Kms(http.server.BaseHTTPRequestHandler):
    """AWS KMS: JSON 1.1 over POST, an operation by header field."""

    key = AESGCM(bytes(32))
    fault: str | None = None
    seen: list[tuple[str, dict[str, Any], str]] = []  # noqa: RUF012 - made anew by each fixture

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = self.headers["X-Amz-Target"].removeprefix("TrentService.")
        type(self).seen.append((operation, body, self.headers.get("Authorization", "")))
        if self.fault is not None:
            self._answer(400, {"__type": self.fault, "message": "as asked"})
            return
        beside = json.dumps(body.get("EncryptionContext", {}), sort_keys=True).encode()
        if operation == "DescribeKey":
            self._answer(200, {"KeyMetadata": {"KeyId": ARN.rpartition("/")[2], "Arn": ARN}})
        elif operation == "Encrypt":
            nonce = os.urandom(12)
            sealed = nonce + self.key.encrypt(nonce, base64.b64decode(body["Plaintext"]), beside)
            self._answer(200, {"KeyId": ARN, "CiphertextBlob": base64.b64encode(sealed).decode()})
        else:
            sealed = base64.b64decode(body["CiphertextBlob"])
            try:
                plain = self.key.decrypt(sealed[:12], sealed[12:], beside)
            except InvalidTag:
                self._answer(400, {"__type": "InvalidCiphertextException"})
            else:
                self._answer(200, {"KeyId": ARN, "Plaintext": base64.b64encode(plain).decode()})

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def service() -> Iterator[type[Kms]]:
    class Mine(Kms):
        fault = None
        seen: list[tuple[str, dict[str, Any], str]] = []  # noqa: RUF012

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        Mine.server_port = server.server_port  # type: ignore[attr-defined]
        yield Mine
        server.shutdown()
        thread.join()


@pytest.fixture
async def kms(service: type[Kms], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsKms]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    endpoint = f"http://127.0.0.1:{service.server_port}"  # type: ignore[attr-defined]
    made = AwsKms(KeySettings(wrapper="kms", kms_key="alias/isocenter", kms_endpoint=endpoint))
    yield made
    await made.close()


async def test_kms_wraps_and_unwraps_by_the_key_that_wrapped(kms: AwsKms, service: type[Kms]) -> None:
    row = await wrapped(kms)

    assert SECRET == await kms.unwrap(row)
    assert await kms.current() == row.wrapper == f"kms:{ARN}"
    operations = [(operation, body["KeyId"]) for operation, body, _ in service.seen]
    assert [
        ("Encrypt", "alias/isocenter"),
        ("Decrypt", ARN),
        ("DescribeKey", "alias/isocenter"),
    ] == operations
    assert all(authorization.startswith("AWS4-HMAC-SHA256") for _, _, authorization in service.seen)
    assert ROW.study_key not in json.dumps([body["EncryptionContext"] for _, body, _ in service.seen[:2]])


async def test_kms_binds_the_row(kms: AwsKms) -> None:
    row = await wrapped(kms)
    with pytest.raises(KeyUnusable):
        await kms.unwrap(replace(row, study_key="another"))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("AccessDeniedException", Misconfigured),
        ("DisabledException", Misconfigured),
        ("IncorrectKeyException", KeyUnusable),
        ("DependencyTimeoutException", KeysUnavailable),
        ("KMSInternalException", KeysUnavailable),
    ],
)
async def test_what_kms_answers(kms: AwsKms, service: type[Kms], fault: str, error: type[Exception]) -> None:
    row = await wrapped(kms)
    service.fault = fault
    with pytest.raises(error) as raised:
        await kms.unwrap(row)
    assert type(raised.value) is error


def test_kms_without_a_key() -> None:
    with pytest.raises(Misconfigured):
        AwsKms(KeySettings(wrapper="kms"))


async def test_kms_in_an_image_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting to mend, exit status 78, and not a crash that is tried again for ever."""
    monkeypatch.setitem(sys.modules, "isocenter.common.keys.kms", None)
    table = await SqliteKeyTable.open(tmp_path / "keys.sqlite")
    with pytest.raises(Misconfigured, match=r"isocenter-common\[kms\]"):
        await open_wrapper(
            KeySettings(wrapper="kms", kms_key="alias/isocenter"), tmp_path / "wrap.key", table
        )
    await table.close()
