"""The estimate of how long rows take."""

from __future__ import annotations

import pytest
from glowserve_service.scheduling.pace import Pace


def test_rows_take_no_time_while_nothing_was_measured() -> None:
    assert Pace().seconds(1000, 8) == 0


def test_the_newest_batch_has_a_fifth_of_the_weight() -> None:
    pace = Pace()
    pace.add(8, 1.0, 0.8)
    assert pace.seconds(16, 8) == pytest.approx(2.0)
    pace.add(8, 2.0, 0.8)
    assert pace.seconds(16, 8) == pytest.approx(2 * 1.2)
    assert pace.own_row_seconds == pytest.approx(0.1)


def test_after_small_batches_the_time_per_batch_bounds_the_estimate() -> None:
    """As on a GPU, where a batch takes as long as a row: 256 rows take 8 batches, not 256 times a row's time."""
    pace = Pace()
    for _ in range(10):
        pace.add(1, 0.01, 0.01)
    assert pace.seconds(256, 32) == pytest.approx(0.08)
    assert pace.seconds(1, 32) == pytest.approx(0.01)


def test_after_full_batches_the_time_per_row_bounds_the_estimate() -> None:
    """As on a CPU, where every row takes its time: 2 rows take a quarter of a batch of 8."""
    pace = Pace()
    for _ in range(10):
        pace.add(8, 0.48, 0.48)
    assert pace.seconds(2, 8) == pytest.approx(0.12)
    assert pace.seconds(8, 8) == pytest.approx(0.48)


def test_a_batch_has_as_many_rows_as_surely_take_no_longer_than_is_left() -> None:
    pace = Pace()
    assert pace.rows_within(0.001, 32) == 32  # nothing was measured
    pace.add(2, 0.2, 0.2)
    assert [pace.rows_within(left, 32) for left in (-1, 0, 0.35, 3.2, 1e9, float("inf"))] == [
        1,
        1,
        3,
        32,
        32,
        32,
    ]
