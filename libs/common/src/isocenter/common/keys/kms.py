"""Wrapping by AWS KMS: the wrapping key never leaves it. Needs the extra `isocenter-common[kms]`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from isocenter.common.errors import IsocenterError, KeysUnavailable, KeyUnusable, Misconfigured

if TYPE_CHECKING:
    from isocenter.common.keys.ports import WrappedKey
    from isocenter.common.settings import KeySettings

ANSWER_SECONDS: Final = 5
_CONTEXT: Final = "isocenter-binding"
_NOT_OURS: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_REFUSED: Final = frozenset(
    {
        *("AccessDeniedException", "NotFoundException", "DisabledException", "KMSInvalidStateException"),
        *("InvalidKeyUsageException", "UnrecognizedClientException", "InvalidSignatureException"),
    }
)


class AwsKms:
    """A `KeyWrapper`. What is bound to a key goes as the encryption context, hashed: CloudTrail shows it.

    Credentials come as botocore finds them: environment, web identity of the pod, instance profile.

    Raises:
        Misconfigured: no key is named, or no client can be made.
    """

    def __init__(self, settings: KeySettings) -> None:
        if settings.kms_key is None:
            raise Misconfigured(f"{settings.variable('kms_key')} is not set")
        self._key = settings.kms_key
        try:
            self._client: Any = botocore.session.get_session().create_client(
                "kms",
                region_name=settings.kms_region,
                endpoint_url=str(settings.kms_endpoint) if settings.kms_endpoint else None,
                config=Config(
                    connect_timeout=ANSWER_SECONDS,
                    read_timeout=ANSWER_SECONDS,
                    retries={"total_max_attempts": 3, "mode": "standard"},
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise Misconfigured(f"AWS KMS cannot be used: {type(error).__name__}") from None

    async def current(self) -> str:
        found = await self._call(lambda: self._client.describe_key(KeyId=self._key))
        return _name(found["KeyMetadata"]["Arn"])

    async def wrap(self, secret: bytes, binding: bytes) -> tuple[bytes, str]:
        found = await self._call(
            lambda: self._client.encrypt(
                KeyId=self._key, Plaintext=secret, EncryptionContext=_context(binding)
            )
        )
        return bytes(found["CiphertextBlob"]), _name(found["KeyId"])

    async def unwrap(self, row: WrappedKey) -> bytes:
        # By the key that wrapped it: a site may go over to another one while old rows wait for a rotation.
        found = await self._call(
            lambda: self._client.decrypt(
                KeyId=row.wrapper.removeprefix("kms:"),
                CiphertextBlob=row.wrapped,
                EncryptionContext=_context(row.binding),
            ),
            study_key=row.study_key,
        )
        return bytes(found["Plaintext"])

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)

    async def _call(self, call: Callable[[], dict[str, Any]], **ids: str) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(call)
        except ClientError as error:
            raise _translated(str(error.response.get("Error", {}).get("Code")), ids) from None
        except BotoCoreError as error:
            raise KeysUnavailable("AWS KMS does not answer", cause=type(error).__name__) from None


def _translated(code: str, ids: dict[str, str]) -> IsocenterError:
    if code in _NOT_OURS:
        return KeyUnusable("a study key does not unwrap", **ids)
    if code in _REFUSED:
        return Misconfigured("AWS KMS refuses this key", cause=code)
    return KeysUnavailable("AWS KMS cannot be used", cause=code)


def _name(arn: str) -> str:
    return f"kms:{arn}"


def _context(binding: bytes) -> dict[str, str]:
    return {_CONTEXT: hashlib.sha256(binding).hexdigest()}
