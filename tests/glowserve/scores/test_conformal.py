"""Conformal p-values: what they count, and that they are valid."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from glowserve.scores.conformal import (
    default_false_alarm_rate,
    images_for,
    p_values,
    resolution,
    two_sided_p_values,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


@pytest.mark.parametrize(
    ("value", "p"),
    [
        (0, 1),
        (1, 1),
        (1.5, 4 / 5),
        (2, 4 / 5),
        (2.5, 2 / 5),
        (3, 2 / 5),
        (4, 1 / 5),
        (np.inf, 1 / 5),
        (-np.inf, 1),
    ],
)
def test_a_p_value_counts_the_image_and_the_calibration_images_at_least_as_odd(
    value: float, p: float
) -> None:
    assert p_values(array(value), array(1, 2, 2, 3)).tolist() == [p]


@pytest.mark.parametrize(
    ("value", "p"), [(0, 2 / 10), (1, 4 / 10), (4.5, 1), (5, 1), (9, 4 / 10), (10, 2 / 10), (np.inf, 2 / 10)]
)
def test_a_two_sided_p_value_doubles_the_smaller_one(value: float, p: float) -> None:
    calibration = np.arange(1, 10, dtype=np.float64)
    assert two_sided_p_values(array(value), calibration).tolist() == [p]


@pytest.mark.parametrize("rank", [p_values, two_sided_p_values])
@pytest.mark.parametrize("images", [5, 90, 400])
def test_p_values_are_valid_when_the_calibration_is_drawn_anew_each_time(rank, images: int) -> None:
    """The share of p <= a is at most a, for every a, up to what 4,000 draws leave open; also where scores tie."""
    rng, draws = np.random.default_rng(3), 4000
    for digits in (None, 1):
        found = []
        for _ in range(draws):
            pile = rng.gamma(2.0, size=images + 1)
            pile = pile if digits is None else pile.round(digits)
            found.append(rank(pile[:1], np.sort(pile[1:]))[0])
        p = np.array(found)
        for a in (0.01, 0.05, 0.1, 0.3, 0.5, 0.9):
            assert (p <= a).mean() <= a + 4 * np.sqrt(a * (1 - a) / draws)
        if digits is None and images == 400:  # and it is no more careful than it must be
            assert (p <= 0.1).mean() >= 0.1 - 4 * np.sqrt(0.09 / draws) - 2 / (images + 1)


def test_the_rate_of_one_calibration_varies_like_a_beta_distribution(rng: np.random.Generator) -> None:
    n, k = 99, 10
    images = (np.arange(2000) + 0.5) / 2000  # of uniform oddness, like the calibration images
    calibrations = (np.sort(rng.random(n)) for _ in range(2000))
    rates = [(p_values(images, calibration) <= k / (n + 1)).mean() for calibration in calibrations]
    mean = k / (n + 1)
    assert np.mean(rates) == pytest.approx(mean, abs=0.003)
    assert np.std(rates) == pytest.approx(np.sqrt(mean * (1 - mean) / (n + 2)), rel=0.1)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.05, 0.011, 0.01, 1e-3, 1 / 3, 1 / 49, 0.999])
def test_a_rate_takes_as_many_images_as_its_resolution_says(rate: float) -> None:
    n = images_for(rate)
    assert resolution(n) <= rate
    assert n == 1 or resolution(n - 1) > rate


@pytest.mark.parametrize("rate", [8.90105075251898e-41, 1e-300, 5e-324])
def test_however_small_a_rate_is_the_images_that_it_takes_are_found_at_once(rate: float) -> None:
    n = images_for(rate)
    assert n <= 1 / Fraction(rate) <= n + 2
    assert resolution(n) <= rate


@pytest.mark.parametrize(("images", "rate"), [(9, 0.1), (98, 1 / 99), (99, 0.01), (4000, 0.01)])
def test_the_default_rate_is_one_percent_or_the_resolution(images: int, rate: float) -> None:
    assert default_false_alarm_rate(images) == rate
