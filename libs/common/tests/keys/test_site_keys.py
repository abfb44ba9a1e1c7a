import base64
import hashlib
import hmac
import os
import re
import threading
from pathlib import Path

import pytest

from isocenter.common.errors import Misconfigured
from isocenter.common.keys import SiteKeys

UID = "1.2.840.113619.2.55.3.604688119.969.1268071029.320"


def test_a_key_is_128_bits_of_hmac_sha256_in_base32() -> None:
    """Computed here a second time from the definition in docs/event-contract.md."""
    secret = bytes(range(32))
    digest = hmac.new(secret, b"study\0" + UID.encode(), hashlib.sha256).digest()
    expected = base64.b32encode(digest[:16]).decode().rstrip("=").lower()

    assert expected == SiteKeys(secret).study_key(UID)
    assert re.fullmatch(r"[a-z2-7]{26}", expected)


def test_the_same_uid_has_different_keys_for_different_purposes_and_sites() -> None:
    here, there = SiteKeys(b"a" * 32), SiteKeys(b"b" * 32)
    keys = [
        here.study_key(UID),
        here.series_key(UID),
        here.instance_key(UID),
        here.transfer_key(UID),
        there.study_key(UID),
    ]

    assert len(keys) == len(set(keys))


def test_an_object_key_changes_with_uid_encoding_and_content() -> None:
    keys = SiteKeys(b"a" * 32)
    names = {
        keys.object_key(UID, "1.2.840.10008.1.2.1", "00"),
        keys.object_key(UID, "1.2.840.10008.1.2.1", "01"),
        keys.object_key(UID, "1.2.840.10008.1.2", "00"),
        keys.object_key(UID + ".1", "1.2.840.10008.1.2.1", "00"),
    }

    assert len(names) == 4
    assert all(UID not in name for name in names)


def test_the_secret_is_created_once_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "site.key"
    first = SiteKeys.load_or_create(path)
    second = SiteKeys.load_or_create(path)

    assert first.study_key(UID) == second.study_key(UID)
    assert 0o600 == path.stat().st_mode & 0o777
    assert ["site.key"] == [entry.name for entry in path.parent.iterdir()]


def test_services_starting_together_agree_on_one_secret(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    barrier = threading.Barrier(8)
    keys: list[str] = []

    def start() -> None:
        barrier.wait()
        keys.append(SiteKeys.load_or_create(path).study_key(UID))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 8 == len(keys)
    assert 1 == len(set(keys))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "site.key"
    SiteKeys.load_or_create(path)
    path.chmod(mode)

    with pytest.raises(Misconfigured, match="chmod 600"):
        SiteKeys.load_or_create(path)


def test_a_truncated_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(os.urandom(31))
    path.chmod(0o600)

    with pytest.raises(Misconfigured):
        SiteKeys.load_or_create(path)
