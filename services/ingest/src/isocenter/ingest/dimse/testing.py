"""For tests of TLS: an authority, and certificates that it signs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from isocenter.common.clock import SystemClock
from isocenter.ingest.dimse.tls import fingerprint

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Identity:
    """A certificate with its key, in files."""

    certificate: Path
    key: Path
    fingerprint: str


class Authority:
    """Signs certificates for one test."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, 30).add_extension(basic, critical=True)
        certificate = certificate.public_key(self._key.public_key())
        signed = certificate.sign(self._key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, days: int = 30, file: str | None = None) -> Identity:
        """`days` below 0: expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        builder = self._builder(subject, days).public_key(key.public_key())
        signed = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        paths = [self._folder / f"{file or name}.{part}" for part in ("crt", "key")]
        paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Identity(paths[0], paths[1], fingerprint(signed.public_bytes(serialization.Encoding.DER)))

    def _builder(self, subject: x509.Name, days: int) -> x509.CertificateBuilder:
        now = SystemClock().now()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=days))
        )
