"""The scores that are in every answer: percentiles, and values that are not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.scores import COLUMNS, Scorer
from glowserve.v1.manifest_pb2 import Calibration, ImageSpec, Manifest

D = 64


@dataclass
class Output:
    """The output of a forward graph."""

    log_likelihood: np.ndarray
    log_prior: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    log_det: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.float32))


def output(*bits: float) -> Output:
    """The output for images with these bits per dimension."""
    return Output(np.array([-b * D * math.log(2) for b in bits], np.float32))


def scorer(*calibration: float) -> Scorer:
    """The scorer of a bundle whose calibration images have these bits per dimension, in the precision of a graph."""
    bits = bits_per_dim(output(*calibration).log_likelihood.astype(np.float64), D)
    return Scorer(
        Manifest(
            model="m",
            version=7,
            image=ImageSpec(latent_size=D),
            calibration=Calibration(bits_per_dim=bits.tolist()),
        )
    )


def test_scores_name_the_model_the_version_and_the_seed() -> None:
    scores = scorer(1, 2, 3).score(output(1.5, 2.5), seed=11)
    assert (scores.model, scores.version, scores.seed, len(scores)) == ("m", 7, 11, 2)


def test_scores_are_computed_in_double_precision() -> None:
    given = output(1.5, 2.5)
    scores = scorer(1, 2, 3).score(given, seed=0)
    np.testing.assert_array_equal(scores.log_likelihood, given.log_likelihood.astype(np.float64))
    np.testing.assert_array_equal(scores.bits_per_dim, bits_per_dim(scores.log_likelihood, D))
    assert {name: getattr(scores, name).dtype for name in COLUMNS} == COLUMNS


# Percentiles


@pytest.mark.parametrize(
    ("bits", "percentile"),
    [
        (0.5, 100),  # more likely than all
        (1, 87.5),  # three of four are less likely, and one ties
        (1.5, 75),
        (2, 50),  # one of four is less likely, and two tie
        (2.5, 25),
        (3, 12.5),
        (9, 0),  # less likely than all
    ],
)
def test_a_percentile_counts_less_likely_calibration_images_and_half_of_the_ties(
    bits: float, percentile: float
) -> None:
    assert scorer(1, 2, 2, 3).score(output(bits), seed=0).percentile.tolist() == [percentile]


def test_percentiles_do_not_depend_on_the_order_of_the_calibration() -> None:
    given = output(0.5, 1, 1.5, 2, 2.5, 3, 9)
    shuffled, ordered = scorer(2, 3, 1, 2).score(given, seed=0), scorer(1, 2, 2, 3).score(given, seed=0)
    np.testing.assert_array_equal(shuffled.percentile, ordered.percentile)


def test_a_more_likely_image_never_has_a_lower_percentile(rng: np.random.Generator) -> None:
    given = output(*sorted(rng.normal(3, 0.7, 500), reverse=True))
    percentile = scorer(*rng.normal(3, 0.5, 100)).score(given, seed=0).percentile
    assert (np.diff(percentile) >= 0).all()
    assert (percentile[0], percentile[-1]) == (0, 100)


def test_calibration_images_have_uniform_percentiles(embedded: glowserve.Client) -> None:
    pytest.importorskip("torch", reason="the calibration images come from the training package")
    from glowserve_training.data import DataConfig, load_images

    images = load_images(DataConfig(data="digits", image_size=8, channels=1)).calibration
    percentile, n = embedded.score(images).percentile, len(images)
    # Two images of tolerance: a score may differ in its last bit from the one at export, and pass others.
    np.testing.assert_allclose(np.sort(percentile), 100 * (np.arange(n) + 0.5) / n, atol=200 / n)
    assert percentile.mean() == pytest.approx(50, abs=0.5)


def test_held_out_images_have_percentiles_in_the_whole_range(
    embedded: glowserve.Client, digits: UInt8Array
) -> None:
    percentile = embedded.score(digits).percentile
    assert percentile.mean() == pytest.approx(50, abs=12)
    counts, _ = np.histogram(percentile, bins=4, range=(0, 100))
    assert counts.min() > len(digits) / 16  # a quarter of 179, give or take 10, as the scale has 90 images


# Values that are not finite


def test_a_log_likelihood_that_is_not_finite_is_minus_infinity_and_does_not_affect_other_images() -> None:
    given = output(1, 9, 2, 9, 3, 9, 1)
    lost = [1, 3, 5]
    given.log_likelihood[lost] = -np.inf, np.nan, np.inf
    scores = scorer(1, 2, 2, 3).score(given, seed=0)
    assert scores.finite.tolist() == [i not in lost for i in range(7)]
    assert scores.log_likelihood[lost].tolist() == [-np.inf] * 3
    assert scores.bits_per_dim[lost].tolist() == [np.inf] * 3
    assert scores.percentile[lost].tolist() == [0] * 3
    alone = scorer(1, 2, 2, 3).score(Output(given.log_likelihood[scores.finite]), seed=0)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(scores, name)[scores.finite], getattr(alone, name))
