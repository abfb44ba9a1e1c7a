"""Where the DICOM ports are, from the settings, and what of it is refused."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from isocenter.common.errors import Misconfigured
from isocenter.ingest.dimse.tls import TlsFiles

if TYPE_CHECKING:
    from isocenter.ingest.settings import IngestSettings


class Address(NamedTuple):
    """A port to listen on; 0 lets the operating system choose."""

    host: str
    port: int


def plain_address(settings: IngestSettings) -> Address | None:
    """Of the port without TLS; None: there is none.

    Raises:
        Misconfigured: it would be reachable from other machines, and nobody said that it may be.
    """
    if settings.dicom_plain == "off":
        return None
    if settings.dicom_plain == "loopback" and not _is_loopback(settings.dicom_host):
        name = settings.variable("dicom_plain")
        raise Misconfigured(
            f"{settings.variable('dicom_host')}={settings.dicom_host} would take DICOM without TLS from "
            f"other machines: set {name}=anywhere if the network is protected by other means, or {name}=off "
            f"and the certificate of the TLS port ({settings.variable('tls_certificate_file')})"
        )
    return Address(settings.dicom_host, settings.dicom_port)


def tls_files(settings: IngestSettings) -> TlsFiles | None:
    """Of the TLS port; None: there is none.

    Raises:
        Misconfigured: only some are named, or there is no port at all.
    """
    certificate, key, client_ca = (
        settings.tls_certificate_file,
        settings.tls_key_file,
        settings.tls_client_ca_file,
    )
    named = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": client_ca}
    missing = [settings.variable(name) for name, path in named.items() if path is None]
    if certificate is None or key is None or client_ca is None:
        if len(missing) < len(named):
            raise Misconfigured(f"TLS: {', '.join(missing)} must be set too")
        if settings.dicom_plain == "off":
            raise Misconfigured(f"{settings.variable('dicom_plain')}=off and no TLS: there is no DICOM port")
        return None
    return TlsFiles(certificate, key, client_ca)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
