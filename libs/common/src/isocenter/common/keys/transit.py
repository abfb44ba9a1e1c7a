"""Wrapping by the transit engine of OpenBao or Vault: the wrapping key never leaves it.

Needs a key of an AEAD type, and a token that may do no more than this:

    path "transit/encrypt/isocenter" { capabilities = ["update"] }
    path "transit/decrypt/isocenter" { capabilities = ["update"] }
    path "transit/keys/isocenter"    { capabilities = ["read"] }
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
from typing import TYPE_CHECKING, Any, Final

import httpx

from isocenter.common.errors import KeysUnavailable, KeyUnusable, Misconfigured
from isocenter.common.keys.files import read_mounted

if TYPE_CHECKING:
    from isocenter.common.keys.ports import WrappedKey
    from isocenter.common.settings import KeySettings

ANSWER_SECONDS: Final = 5.0
_BAD_REQUEST: Final = 400
_REFUSED: Final = frozenset({401, 403, 404, 405})


class Transit:
    """A `KeyWrapper`. What is bound to a key goes as `associated_data`, so a row changed does not unwrap.

    Args:
        transport: in place of the network, for tests.

    Raises:
        Misconfigured: no URL, no token, or a file that cannot be read.
    """

    def __init__(self, settings: KeySettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        if settings.transit_url is None:
            raise Misconfigured(f"{settings.variable('transit_url')} is not set")
        if (settings.transit_token is None) == (settings.transit_token_file is None):
            raise Misconfigured(
                f"set {settings.variable('transit_token_file')} or {settings.variable('transit_token')}"
            )
        self._settings = settings
        self._mount = settings.transit_mount.strip("/")
        self._key = settings.transit_key
        self._client = httpx.AsyncClient(
            base_url=str(settings.transit_url).rstrip("/"),
            timeout=ANSWER_SECONDS,
            verify=_trust(settings),
            transport=transport,
            follow_redirects=False,
        )
        self._token()

    async def current(self) -> str:
        found = await self._call("GET", f"{self._mount}/keys/{self._key}")
        return self._name(str(found.get("latest_version")))

    async def wrap(self, secret: bytes, binding: bytes) -> tuple[bytes, str]:
        found = await self._call(
            "POST",
            f"{self._mount}/encrypt/{self._key}",
            {"plaintext": _text(secret), "associated_data": _text(binding)},
        )
        wrapped = str(found.get("ciphertext"))
        prefix, _, rest = wrapped.partition(":")
        version = rest.partition(":")[0].removeprefix("v")
        if prefix not in {"vault", "bao"} or not version.isdecimal():
            raise KeysUnavailable("the transit engine answered with something that is no ciphertext")
        return wrapped.encode(), self._name(version)

    async def unwrap(self, row: WrappedKey) -> bytes:
        try:
            found = await self._call(
                "POST",
                f"{self._mount}/decrypt/{self._key}",
                {"ciphertext": row.wrapped.decode("ascii"), "associated_data": _text(row.binding)},
            )
            secret = base64.b64decode(str(found.get("plaintext")), validate=True)
        except (_BadRequestError, UnicodeDecodeError, binascii.Error):
            raise KeyUnusable("a study key does not unwrap", study_key=row.study_key) from None
        return secret

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        headers = {"X-Vault-Token": await asyncio.to_thread(self._token), "X-Vault-Request": "true"}
        if self._settings.transit_namespace:
            headers["X-Vault-Namespace"] = self._settings.transit_namespace
        try:
            response = await self._client.request(method, f"/v1/{path}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise KeysUnavailable("the transit engine does not answer", cause=type(error).__name__) from None
        if response.status_code == _BAD_REQUEST:
            raise _BadRequestError
        if response.status_code in _REFUSED:
            raise Misconfigured(
                f"the transit engine refuses {method} of the key {self._key}", status=response.status_code
            )
        try:
            response.raise_for_status()
            data = response.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            raise KeysUnavailable("the transit engine cannot be used", status=response.status_code) from None
        return data if isinstance(data, dict) else {}

    def _token(self) -> str:
        if self._settings.transit_token_file is not None:
            return read_mounted(self._settings.transit_token_file, "transit token").decode("ascii").strip()
        token = self._settings.transit_token
        return token.get_secret_value() if token is not None else ""

    def _name(self, version: str) -> str:
        return f"transit:{self._mount}/{self._key}:v{version}"


class _BadRequestError(KeysUnavailable):
    """The engine could not do what was asked with the key that is there."""

    def __init__(self) -> None:
        super().__init__("the transit engine cannot do this with its key", status=_BAD_REQUEST)


def _trust(settings: KeySettings) -> ssl.SSLContext | bool:
    if settings.transit_ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(settings.transit_ca_file))
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(
            f"{settings.variable('transit_ca_file')} {settings.transit_ca_file} holds no certificates: "
            f"{type(error).__name__}"
        ) from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
