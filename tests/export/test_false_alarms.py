"""False alarms of conformal p-values: their interval beside SciPy's, and a p-value that keeps its promise."""

from __future__ import annotations

import numpy as np
import pytest
from glowserve_export.false_alarms import false_alarm_interval, false_alarms
from scipy.stats import betabinom

from glowserve.scores.conformal import p_values


@pytest.mark.parametrize("images", [1, 10, 1000, 1250])
@pytest.mark.parametrize("n", [1, 19, 99, 1000, 4000])
@pytest.mark.parametrize("rate", [0.1, 0.05, 0.01, 0.5])
def test_the_interval_is_scipys(images: int, n: int, rate: float) -> None:
    k = int(np.floor(rate * (n + 1) + 1e-9))
    low, high = false_alarm_interval(images, n, rate)
    if k == 0:
        assert (low, high) == (0, 0)
        return
    distribution = betabinom(images, k, n + 1 - k)
    assert (low * images, high * images) == pytest.approx((distribution.ppf(0.025), distribution.ppf(0.975)))


def test_a_rate_that_everything_reaches_always_alarms() -> None:
    assert false_alarm_interval(10, 3, 1) == (1, 1)


def test_shares_fall_into_the_interval_as_often_as_it_says(rng: np.random.Generator) -> None:
    inside = 0
    for _ in range(400):
        p = p_values(rng.normal(size=300), np.sort(rng.normal(size=199)))
        inside += false_alarms(p, 199, 0.05).inside
    assert inside >= 365  # a thousandth's chance for 95 %


def test_a_shifted_sample_is_outside(rng: np.random.Generator) -> None:
    p = p_values(rng.normal(1, size=1000), np.sort(rng.normal(size=999)))
    found = false_alarms(p, 999, 0.05)
    assert (found.asked, found.inside) == (0.05, False)
    assert found.measured > 0.15
