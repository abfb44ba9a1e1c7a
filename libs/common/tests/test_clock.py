import os
from datetime import UTC, timedelta

from isocenter.common.clock import ManualClock, SystemClock, uuid7


def test_uuid7_has_its_version_variant_and_time() -> None:
    identifier = uuid7(1_700_000_000_123, os.urandom(10))

    assert 7 == identifier.version
    assert "specified in RFC 4122" == identifier.variant
    assert 1_700_000_000_123 == identifier.int >> 80


def test_ids_of_later_milliseconds_sort_later() -> None:
    ids = [str(uuid7(milliseconds, os.urandom(10))) for milliseconds in range(1000)]

    assert sorted(ids) == ids


def test_the_system_clock_is_utc_and_its_ids_are_unique() -> None:
    clock = SystemClock()

    assert UTC == clock.now().tzinfo
    assert 1000 == len({clock.new_id() for _ in range(1000)})


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock()
    before = clock.now()
    clock.advance(1.5)

    assert timedelta(seconds=1.5) == clock.now() - before
