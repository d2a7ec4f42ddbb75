"""The density of features: its evaluation against scikit-learn's, and its fit to few images."""

from __future__ import annotations

import numpy as np
import pytest

from glowserve.scores.density import Mixture

density = pytest.importorskip("glowserve_export.density", reason="the fit belongs to the exporter")


def features(rng: np.random.Generator, n: int) -> np.ndarray:
    """Features of n images of two kinds, which depend on one another."""
    kind = rng.random(n) < 0.3
    first = rng.normal(size=n) + 6 * kind
    return np.stack([first, 0.9 * first + 0.1 * rng.normal(size=n), 1e-3 * rng.normal(size=n)], axis=1)


def test_the_oddness_is_the_negative_log_density_of_a_gaussian_mixture(rng: np.random.Generator) -> None:
    multivariate_normal = pytest.importorskip("scipy.stats").multivariate_normal
    weights, means, whitening = np.array([0.25, 0.75]), rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))
    x = rng.normal(size=(7, 3))
    expected = sum(
        weight * multivariate_normal(mean, np.linalg.inv(root @ root.T)).pdf(x)
        for weight, mean, root in zip(weights, means, whitening, strict=True)
    )
    oddness = Mixture(weights=weights, means=means, whitening=whitening).oddness(x)
    np.testing.assert_allclose(oddness, -np.log(expected))


def test_a_fit_finds_what_depends_on_one_another(rng: np.random.Generator) -> None:
    mixture = density.fit_mixture(features(rng, 500))
    usual, other = mixture.oddness(np.array([[6.0, 5.4, 0.0], [6.0, 0.0, 0.0]]))
    assert usual < other - 10  # each of the two numbers is usual by itself


def test_the_same_features_give_the_same_mixture(rng: np.random.Generator) -> None:
    x = features(rng, 200)
    one, other = density.fit_mixture(x), density.fit_mixture(x.copy())
    for name in ("weights", "means", "whitening"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 49, 100])
def test_few_images_give_a_density_that_knows_them_from_far_ones(rng: np.random.Generator, n: int) -> None:
    x = features(rng, n)
    mixture = density.fit_mixture(x)
    assert np.isfinite(mixture.oddness(x)).all()
    assert mixture.oddness(x).max() < mixture.oddness(x.mean(axis=0)[None] + 100).min()
    assert len(mixture.weights) == max(1, min(4, n // 50))


def test_images_that_are_all_alike_give_a_density(rng: np.random.Generator) -> None:
    x = np.ones((20, 3))
    oddness = density.fit_mixture(x).oddness(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.1]]))
    assert np.isfinite(oddness[0])
    assert oddness[0] < oddness[1]


def test_features_that_are_not_finite_or_far_away_are_odder_than_all(rng: np.random.Generator) -> None:
    mixture = density.fit_mixture(features(rng, 100))
    far = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [0, -np.inf, 0], [1e300, 0, 0], [-1e308, 1e308, 1e308]])
    assert mixture.oddness(far).tolist() == [np.inf] * 5
