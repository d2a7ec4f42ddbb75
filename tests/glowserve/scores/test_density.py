"""The oddness of images: its formula, its fit to few images and to strange ones."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from glowserve.likelihood import bits_per_dim
from glowserve.scores.conformal import p_values
from glowserve.scores.parts import Parts
from tests.glowserve.scores.making import random_parts, taken

density = pytest.importorskip("glowserve_export.density", reason="the fit belongs to the exporter")

D = 64


def test_the_oddness_is_the_sum_of_four_logarithms_of_tail_probabilities(rng: np.random.Generator) -> None:
    stats = pytest.importorskip("scipy.stats")
    fitting, parts = random_parts(rng, 300), random_parts(rng, 7)
    fitted = density.fit_density(fitting, D)
    bits = bits_per_dim(parts.log_likelihood, D)
    statistics = [
        *(
            np.sqrt(np.einsum("ni,ij,nj->n", x - each.mean, each.whitening @ each.whitening.T, x - each.mean))
            for x, each in (
                (np.hstack([parts.log_prior, parts.log_det]), fitted.levels),
                (parts.channels, fitted.channels),
                (parts.contrasts, fitted.contrasts),
            )
        ),
        bits - fitted.bits - (parts.contrasts - fitted.contrasts.mean) @ fitted.bits_by_contrast,
    ]
    expected = -sum(
        stats.logistic(median, scale).logsf(each)
        for each, median, scale in zip(statistics, fitted.median, fitted.scale, strict=True)
    )
    np.testing.assert_allclose(fitted.oddness(parts, D), expected, atol=1e-6)


def test_one_fitting_image_in_twenty_is_in_each_tail(rng: np.random.Generator) -> None:
    parts = random_parts(rng, 1000)
    fitted = density.fit_density(parts, D)
    tails = 1 / (1 + np.exp((fitted.statistics(parts, D) - fitted.median) / fitted.scale))
    np.testing.assert_allclose((tails <= 0.05 + 1e-9).mean(axis=0), 0.05, atol=2e-3)
    np.testing.assert_allclose((tails <= 0.5 + 1e-9).mean(axis=0), 0.5, atol=2e-3)


@pytest.mark.parametrize("part", ["log_prior", "log_det", "channels", "contrasts"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_any_part_that_is_out_of_line_makes_an_image_odd(
    rng: np.random.Generator, part: str, sign: int
) -> None:
    fitting, image = random_parts(rng, 500), random_parts(rng, 1)
    fitted = density.fit_density(fitting, D)
    values = getattr(image, part).copy()
    values[0, 0] += sign * 20
    assert fitted.oddness(replace(image, **{part: values}), D) > fitted.oddness(fitting, D).max()


def test_only_a_likelihood_below_that_of_images_with_such_contrasts_is_odd(rng: np.random.Generator) -> None:
    fitted = density.fit_density(random_parts(rng, 500), D)
    image = random_parts(rng, 1)
    likelier, unlikelier = (replace(image, log_likelihood=image.log_likelihood + nats) for nats in (50, -50))
    usual = fitted.oddness(image, D)
    assert fitted.oddness(likelier, D) <= usual < fitted.oddness(unlikelier, D) - 3


def test_a_part_that_contradicts_another_is_odd(rng: np.random.Generator) -> None:
    fitting = random_parts(rng, 2000)
    together = fitting.log_prior.copy()
    together[:, 1] = together[:, 0] + 0.01 * rng.normal(size=2000)
    fitted = density.fit_density(replace(fitting, log_prior=together), D)
    image = taken(fitting, slice(1))
    alike, apart = np.array([[-9.0, -9.0]]), np.array([[-9.0, -12.0]])
    odd, usual = (fitted.oddness(replace(image, log_prior=each), D) for each in (apart, alike))
    assert odd > usual + 1  # each of the two numbers is usual by itself


def test_the_same_parts_give_the_same_density(rng: np.random.Generator) -> None:
    parts = random_parts(rng, 200)
    one, other = density.fit_density(parts, D), density.fit_density(taken(parts, slice(None)), D)
    np.testing.assert_array_equal(one.channels.whitening, other.channels.whitening)
    np.testing.assert_array_equal(one.scale, other.scale)


def test_an_image_is_as_odd_alone_as_among_others(rng: np.random.Generator) -> None:
    fitted = density.fit_density(random_parts(rng, 100, image_channels=3, levels=3), 3 * D)
    parts = random_parts(rng, 33, image_channels=3, levels=3)
    alone = [fitted.oddness(taken(parts, slice(i, i + 1)), 3 * D)[0] for i in range(33)]
    assert alone == fitted.oddness(parts, 3 * D).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 49, 100])
def test_few_images_give_a_density_that_knows_them_from_far_ones(rng: np.random.Generator, n: int) -> None:
    parts = random_parts(rng, n)
    fitted = density.fit_density(parts, D)
    assert np.isfinite(fitted.oddness(parts, D)).all()
    far = taken(parts, slice(1))
    far = replace(far, channels=far.channels + 100)
    assert fitted.oddness(parts, D).max() < fitted.oddness(far, D)[0] < np.inf


@pytest.mark.parametrize("n", [2, 30])
def test_a_poor_fit_costs_no_validity(rng: np.random.Generator, n: int) -> None:
    images, found = 19, []
    for _ in range(600):  # another calibration is drawn each time
        fitted = density.fit_density(random_parts(rng, n), D)
        oddness = fitted.oddness(random_parts(rng, images + 1), D)
        found.append(p_values(oddness[:1], np.sort(oddness[1:]))[0])
    for rate in (0.05, 0.1, 0.5):
        share, error = np.mean(np.array(found) <= rate + 1e-9), np.sqrt(rate * (1 - rate) / 600)
        assert abs(share - rate) < 4 * error


def test_images_that_are_all_alike_give_a_density(rng: np.random.Generator) -> None:
    parts = taken(random_parts(rng, 1), np.zeros(20, int))
    fitted = density.fit_density(parts, D)
    other = taken(parts, slice(1))
    other = replace(other, contrasts=other.contrasts + 0.1)
    assert np.isfinite(fitted.oddness(parts, D)).all()
    assert fitted.oddness(parts, D).max() < fitted.oddness(other, D)[0] < np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", [each.name for each in fields(Parts)])
def test_an_image_with_a_part_that_is_not_finite_is_odder_than_all(
    rng: np.random.Generator, part: str, value: float
) -> None:
    fitted = density.fit_density(random_parts(rng, 100), D)
    parts = random_parts(rng, 2)
    getattr(parts, part)[:1] = value
    oddness = fitted.oddness(parts, D)
    assert oddness[0] == np.inf
    assert np.isfinite(oddness[1])


def test_parts_far_beyond_float32_are_odder_than_all(rng: np.random.Generator) -> None:
    fitting = random_parts(rng, 100)
    fitted = density.fit_density(fitting, D)
    parts = random_parts(rng, 2)
    parts.channels[0], parts.log_prior[1] = 1e300, -1e308
    assert (fitted.oddness(parts, D) > fitted.oddness(fitting, D).max()).all()
