"""A broker that wants TLS and a sign-in (SASL_SSL, SCRAM or PLAIN) beside its plain listener."""

from __future__ import annotations

import subprocess
from pathlib import Path

from testbed.jre import java
from testbed.kafka import KafkaServer
from testbed.server import free_port

USER = "isocenter"
PASSWORD = "for-tests-only"  # noqa: S105 - a broker on loopback that lives for one test
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")


class SecureKafka(KafkaServer):
    """Attributes: `ca_file` holds the certificate to trust, for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.secure_port = free_port()
        self.ca_file = folder / "ca.pem"
        self._keys = folder / "broker.p12"

    @property
    def secure_bootstrap(self) -> str:
        return f"127.0.0.1:{self.secure_port}"

    def start(self) -> None:
        if not self.ca_file.exists():
            self._make_certificate()
        super().start()

    def listeners(self) -> dict[str, str]:
        plain = super().listeners()
        secure = f",SASL_SSL://{self.secure_bootstrap}"
        users = f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}"'
        modules = "org.apache.kafka.common.security"
        password = f"{modules}.plain.PlainLoginModule required {users};"
        scram = f"{modules}.scram.ScramLoginModule required;"
        return {name: value + secure for name, value in plain.items()} | {
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
            "listener.name.sasl_ssl.plain.sasl.jaas.config": password,
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(self._keys),
            "ssl.keystore.password": PASSWORD,
            "ssl.key.password": PASSWORD,
        }

    def format_options(self) -> list[str]:
        return [
            part
            for mechanism in MECHANISMS
            if mechanism.startswith("SCRAM")
            for part in ("--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]")
        ]

    def _make_certificate(self) -> None:
        keytool = java().resolve().with_name("keytool")
        store: list[str | Path] = ["-keystore", self._keys, "-storepass", PASSWORD, "-alias", "broker"]
        make = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=127.0.0.1", "-validity", "2"]
        names = ["-storetype", "PKCS12", "-ext", "SAN=ip:127.0.0.1", "-ext", "bc:c"]
        subprocess.run([keytool, *make, *names, *store], check=True, capture_output=True)
        subprocess.run(
            [keytool, "-exportcert", "-rfc", "-file", self.ca_file, *store], check=True, capture_output=True
        )
