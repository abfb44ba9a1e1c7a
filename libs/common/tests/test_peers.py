"""The peers file: what it takes, and that a wrong one is refused with the place named."""

from __future__ import annotations

from pathlib import Path

import pytest

from isocenter.common.errors import Misconfigured
from isocenter.common.peers import Act, Peers

FINGERPRINT = "sha256:" + "0f" * 32


def load(folder: Path, text: str) -> Peers:
    path = folder / "peers.toml"
    path.write_text(text)
    return Peers.load(path)


def test_a_peer_is_found_by_its_title(tmp_path: Path) -> None:
    peers = load(
        tmp_path,
        f"""
        [[peer]]
        ae_title = "PACS"
        host = "127.0.0.1"
        port = 104
        tls = true
        certificates = ["{FINGERPRINT}"]
        allow = ["store"]

        [[peer]]
        ae_title = "MODALITY"
        """,
    )
    pacs, modality = peers.get("PACS"), peers.get("MODALITY")
    assert pacs is not None
    assert modality is not None
    assert ("127.0.0.1", 104, True, (FINGERPRINT,)) == (pacs.host, pacs.port, pacs.tls, pacs.certificates)
    assert {Act.STORE} == pacs.allow
    assert {Act.ECHO, Act.STORE, Act.COMMIT} == modality.allow
    assert peers.get("NOBODY") is None
    assert 2 == len(peers) == len(list(peers))


def test_without_a_file_nobody_is_known() -> None:
    assert 0 == len(Peers.load(None))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[peer", "TOMLDecodeError"),
        ("[other]\n", r"only \[\[peer\]\]"),
        ("peer = 1\n", r"only \[\[peer\]\]"),
        ('[[peer]]\nae_title = ""\n', "peer 1: ae_title"),
        ('[[peer]]\nae_title = "A"\n[[peer]]\nae_title = "B"\nhost = "h"\n', "peer 2: host and port"),
        ('[[peer]]\nae_title = "A"\ncertificates = ["sha256:00"]\n', "peer 1: certificates.0"),
        ('[[peer]]\nae_title = "A"\nallow = ["delete"]\n', "peer 1: allow"),
        ('[[peer]]\nae_title = "A"\ncolour = 1\n', "peer 1: colour"),
        ('[[peer]]\nae_title = "A"\n[[peer]]\nae_title = "A"\n', "listed twice"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(Misconfigured, match=named):
        load(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="FileNotFoundError"):
        Peers.load(tmp_path / "none.toml")
