"""The settings of a runtime."""

from __future__ import annotations

from glowserve.runtime.config import bucket_sizes


def test_buckets_are_powers_of_two_and_the_largest_batch() -> None:
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(2) == (1, 2)
    assert bucket_sizes(32) == (1, 2, 4, 8, 16, 32)
    assert bucket_sizes(48) == (1, 2, 4, 8, 16, 32, 48)
