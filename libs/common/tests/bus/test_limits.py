"""When a consumer stops rather than dead-letter everything."""

from __future__ import annotations

from isocenter.common.bus.limits import DlqLimit


def test_dead_letters_in_a_row() -> None:
    limit = DlqLimit(max_consecutive=3)
    for _ in range(2):
        limit.dead_lettered()
    assert limit.refusal() is None

    limit.dead_lettered()
    assert "3 dead letters in a row" == limit.refusal()

    limit.processed()
    assert limit.refusal() is None


def test_share_of_a_window() -> None:
    """Every second record is bad: never two in a row, and still half of everything."""
    limit = DlqLimit(max_consecutive=1000, max_ratio=0.4, window=20)
    for _ in range(4):
        limit.dead_lettered()
        limit.processed()
    assert limit.refusal() is None

    limit.dead_lettered()
    limit.processed()
    assert "5 dead letters among the last 10 records" == limit.refusal()


def test_old_dead_letters_leave_the_window() -> None:
    limit = DlqLimit(max_consecutive=1000, max_ratio=0.5, window=10)
    for _ in range(6):
        limit.dead_lettered()
    assert limit.refusal() is not None
    for _ in range(10):
        limit.processed()

    assert limit.refusal() is None
