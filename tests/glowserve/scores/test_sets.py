"""The test of a set: that its p-value is what it claims to be, and what it finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from glowserve.scores import sets
from glowserve.scores.parts import FEATURES
from glowserve.scores.sets import EXCHANGES, SetTest, differences

Rows = np.ndarray
Draw = Callable[[np.random.Generator, int], Rows]

MIXING = np.array([[1.0, 0.9, 0.5], [0.0, 0.3, -0.4], [0.0, 0.0, 0.05]])
"""Features depend on one another, and differ in scale."""


def normal(rng: np.random.Generator, n: int) -> Rows:
    return rng.normal(size=(n, 3)) @ MIXING + [2.0, -1.0, 5.0]


def heavy_tailed(rng: np.random.Generator, n: int) -> Rows:
    return rng.standard_cauchy(size=(n, 3)) @ MIXING


def tied(rng: np.random.Generator, n: int) -> Rows:
    return rng.integers(0, 3, (n, 3)).astype(np.float64)


def partly_not_finite(rng: np.random.Generator, n: int) -> Rows:
    rows = normal(rng, n)
    rows[rng.random(n) < 0.1] = np.nan
    return rows


def p_value(features: Rows, calibration: Rows, fitting: Rows) -> float:
    test = SetTest(features, calibration, fitting)
    while not test.run():
        pass
    return test.p_value


def few_exchanges(monkeypatch: pytest.MonkeyPatch, number: int = 99) -> None:
    monkeypatch.setattr(sets, "EXCHANGES", number)


# Validity


@pytest.mark.parametrize("draw", [normal, heavy_tailed, tied, partly_not_finite])
@pytest.mark.parametrize(("m", "n", "f"), [(2, 40, 40), (25, 25, 2), (60, 20, 1)])
def test_p_values_are_valid_when_calibration_and_set_are_drawn_anew_each_time(
    draw: Draw, m: int, n: int, f: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of p <= a is at most a, up to what the draws leave open: also with ties, and few fitting images."""
    few_exchanges(monkeypatch)
    rng, draws = np.random.default_rng(m), 400
    fitting = normal(rng, f)
    found = []
    for _ in range(draws):
        pile = draw(rng, m + n)
        found.append(p_value(pile[:m], pile[m:], fitting))
    p = np.array(found)
    for a in (0.02, 0.05, 0.1, 0.3, 0.5):
        assert (p <= a).mean() <= a + 4 * np.sqrt(a * (1 - a) / draws)
    if draw is normal:  # and it is no more careful than it must be
        for a in (0.1, 0.5):
            assert (p <= a).mean() >= a - 4 * np.sqrt(a * (1 - a) / draws)


def test_the_p_value_is_the_share_of_all_exchanges_that_leave_as_large_a_difference(
    rng: np.random.Generator,
) -> None:
    """Against a count of every split of eight images, with the kernel as it is written."""
    fitting, pile = normal(rng, 50), normal(rng, 8)
    pile[:3] += [0.5, 0.5, 0.0]
    centre, scale = fitting.mean(axis=0), fitting.std(axis=0)
    variances, axes = np.linalg.eigh(np.corrcoef(fitting.T))
    white = (pile - centre) / scale @ axes / np.sqrt(variances)
    ranks = (white[:, None] >= white).sum(axis=1)
    scores = np.vectorize(NormalDist().inv_cdf)(ranks / 9)
    kernel = (1 + scores @ scores.T / 3) ** 2

    def difference(members: tuple[int, ...]) -> float:
        inside = np.isin(np.arange(8), members)
        signs = np.where(inside, 1 / inside.sum(), -1 / (~inside).sum())
        return float(signs @ kernel @ signs)

    seen = difference((0, 1, 2))
    exact = np.mean([difference(split) >= seen - 1e-9 for split in itertools.combinations(range(8), 3)])
    found = p_value(pile[:3], pile[3:], fitting)
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact / EXCHANGES) + 1e-3)


def test_the_p_value_depends_neither_on_the_order_of_images_nor_on_the_time(rng: np.random.Generator) -> None:
    fitting, calibration, images = normal(rng, 80), normal(rng, 90), normal(rng, 30) + 0.01
    p = p_value(images, calibration, fitting)
    assert 0.001 < p < 1
    assert p_value(images, calibration, fitting) == p
    assert p_value(images[::-1], rng.permutation(calibration), fitting) == p


@pytest.mark.parametrize(
    ("m", "n", "resolution"),
    [(1, 1, 1), (2, 1, 1 / 3), (3, 3, 1 / 10), (2, 4, 1 / 15), (2, 1000, 1e-4), (50, 90, 1e-4)],
)
def test_the_resolution_is_reached_and_not_passed(
    rng: np.random.Generator, m: int, n: int, resolution: float
) -> None:
    fitting = normal(rng, 50)
    test = SetTest(normal(rng, m) + 100, normal(rng, n), fitting)
    assert test.resolution == pytest.approx(resolution)
    while not test.run():
        pass
    assert test.p_value == pytest.approx(resolution, rel=0.25)


# Power


def shifted(rows: Rows, size: float, direction: int) -> Rows:
    """Moved so many standard deviations along a direction in which the features vary by themselves."""
    return rows + size * MIXING[direction]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: shifted(rows, 0.9, 0),
        lambda rows: shifted(rows, 0.9, 1),
        lambda rows: shifted(rows, -0.9, 2),
        lambda rows: rows.mean(axis=0) + 1.7 * (rows - rows.mean(axis=0)),
        lambda rows: rows.mean(axis=0) + 0.4 * (rows - rows.mean(axis=0)),
        lambda rows: np.repeat(rows[:1], len(rows), axis=0),
    ],
    ids=["along the first", "along the second", "against the third", "wider", "narrower", "all the same"],
)
def test_changes_that_hide_in_single_images_are_found_in_a_set(
    rng: np.random.Generator, change: Callable[[Rows], Rows]
) -> None:
    fitting, calibration = normal(rng, 500), normal(rng, 1000)
    assert p_value(change(normal(rng, 50)), calibration, fitting) <= 0.001
    assert p_value(normal(rng, 50), calibration, fitting) > 0.01


def test_a_change_of_how_features_depend_on_one_another_is_found(rng: np.random.Generator) -> None:
    fitting, calibration, images = normal(rng, 500), normal(rng, 1000), normal(rng, 50)
    for column in images.T:  # each as it was, and independent of the others
        rng.shuffle(column)
    assert p_value(images, calibration, fitting) <= 0.001


@pytest.mark.parametrize("outlier", [1e3, 1e30, -1e300, np.nan, np.inf])
def test_one_image_far_out_does_not_hide_what_the_others_have_in_common(
    rng: np.random.Generator, outlier: float
) -> None:
    fitting, calibration = normal(rng, 500), normal(rng, 1000)
    images = shifted(normal(rng, 50), 0.9, 1)
    images[0] = outlier
    assert p_value(images, calibration, fitting) <= 0.001


def test_images_that_are_not_finite_are_evidence(rng: np.random.Generator) -> None:
    fitting, calibration = normal(rng, 500), normal(rng, 1000)
    images = normal(rng, 50)
    assert p_value(images, calibration, fitting) > 0.01
    images[:5] = np.nan
    assert p_value(images, calibration, fitting) <= 0.001
    images[:] = np.nan
    assert p_value(images, calibration, fitting) == 1e-4


@pytest.mark.parametrize("features", [1, 2, 7])
def test_there_may_be_any_number_of_features(rng: np.random.Generator, features: int) -> None:
    fitting, calibration = rng.normal(size=(200, features)), rng.normal(size=(300, features))
    images = rng.normal(size=(60, features))
    assert p_value(images, calibration, fitting) > 0.01
    images[:, -1] += 1
    assert p_value(images, calibration, fitting) <= 0.001


def test_features_that_never_vary_are_no_obstacle(rng: np.random.Generator) -> None:
    fitting, calibration, images = (np.ones((n, 3)) for n in (5, 20, 10))
    assert p_value(images, calibration, fitting) == 1
    images[:, 2] += 1e-3
    assert p_value(images, calibration, fitting) <= 0.001


# Cost


def test_a_large_set_is_computed_in_many_short_parts(rng: np.random.Generator) -> None:
    test = SetTest(normal(rng, 20_000), normal(rng, 4_000), normal(rng, 100))
    assert not test.run()
    assert 0 < test._exchanges < EXCHANGES / 50


def test_of_many_calibration_images_the_first_count(rng: np.random.Generator) -> None:
    assert SetTest(normal(rng, 2), normal(rng, 4_001), normal(rng, 9)).calibration_images == 4_000


# What differs


def test_each_feature_says_how_it_differs(rng: np.random.Generator) -> None:
    calibration = normal(rng, 1000)
    images = calibration[:100] * [1.0, 2.0, 1.0] + [0.0, 0.0, 3.0]
    images[7] = np.nan
    found = differences(images, calibration)
    assert tuple(each.name for each in found) == FEATURES
    finite, scale = np.delete(images, 7, axis=0), calibration.std(axis=0)
    for i, each in enumerate(found):
        assert each.shift == pytest.approx((finite[:, i].mean() - calibration[:, i].mean()) / scale[i])
        assert each.spread == pytest.approx(finite[:, i].std() / scale[i])


def test_nothing_is_said_of_images_that_are_not_finite_or_of_features_that_never_vary() -> None:
    ones = np.ones((4, len(FEATURES)))
    assert differences(np.nan * ones, ones) == ()
    assert {(each.shift, each.spread) for each in differences(ones, ones)} == {(0.0, 1.0)}
    assert {each.shift for each in differences(2 * ones, ones)} == {np.inf}
