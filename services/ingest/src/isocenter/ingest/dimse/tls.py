"""DICOM over TLS as PS3.15 section B.13 has it, as far as Python's `ssl` can say it.

TLS 1.2 and 1.3, 1.3 preferred; a client certificate is required. Of the profile's cipher suites those with
ECDHE are offered. Not offered: DHE (the profile forbids it where its key length cannot be set, and nobody who
keeps the profile depends on it), CCM with 8 byte tags (below OpenSSL's security level 2), Camellia in GCM
(OpenSSL has none). Level 2 also refuses RSA and DH below 2048 bits, curves below 224 bits, SHA-1 signatures.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isocenter.common.errors import Misconfigured

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

CIPHERS: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES256-CCM",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES128-CCM",
    "@SECLEVEL=2",
)
"""Of TLS 1.2. Those of TLS 1.3 are OpenSSL's own: AES-256-GCM, ChaCha20-Poly1305, AES-128-GCM."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: our certificate with its chain, its key, and the authorities of client certificates."""

    certificate: Path
    key: Path
    client_ca: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """What new connections are accepted with. Raises Misconfigured: a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers(":".join(CIPHERS))
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # A resumed session would carry on with a certificate that has expired or is trusted no more.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        # With a password given, OpenSSL never asks the terminal for one.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ValueError) as error:
        raise Misconfigured(
            f"TLS: {files.certificate} and {files.key} are no certificate with its key without a password: "
            f"{_why(error)}"
        ) from None
    try:
        context.load_verify_locations(files.client_ca)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"TLS: {files.client_ca} holds no certificates: {_why(error)}") from None


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """What associations that we open are opened with: the same certificate, and the peer's must be of one of
    the same authorities and name its host. Raises Misconfigured: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHERS))
    _load(context, files)
    return context


def fingerprint_of(transport: asyncio.BaseTransport) -> str | None:
    """That of the peer's certificate, as `common.peers` writes it; None: the connection is not TLS."""
    connection = transport.get_extra_info("ssl_object")
    if connection is None:
        return None
    # Never absent: a handshake without a certificate fails.
    return fingerprint(connection.getpeercert(binary_form=True) or b"")


def fingerprint(certificate: bytes) -> str:
    """Of a certificate in DER."""
    return f"sha256:{hashlib.sha256(certificate).hexdigest()}"


def handshake_failure(error: BaseException) -> str:
    """Why a handshake failed, in OpenSSL's words or ours: few values, nothing of the peer's."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}" if error.verify_message else "certificate"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, ConnectionAbortedError | TimeoutError):
        return "took too long"
    return "the peer went away"


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unreadable").lower().replace("_", " ")
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
