"""From the graphs' numbers to scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine, Reverse
from glowserve.runtime.errors import NotFiniteError
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle
from glowserve.runtime.randomness import DEFAULT_SEED
from glowserve.scores import Scorer
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.checks import mismatched_values, require_finite_images, require_finite_latents
from glowserve.v1.manifest_pb2 import Calibration, ImageSpec, Manifest

D = 64


def _nats(*bits: float) -> np.ndarray:
    """Log-likelihoods, as a graph returns them, of images with so many bits per dimension."""
    return np.array([-b * D * math.log(2) for b in bits], np.float32)


def _scorer(*held_out: float) -> Scorer:
    """Of a bundle whose held-out images have so many bits per dimension."""
    calibration = Calibration(bits_per_dim=bits_per_dim(_nats(*held_out), D).tolist())
    return Scorer(Manifest(model="m", version=7, image=ImageSpec(latent_size=D), calibration=calibration))


def _reverse(pixels: np.ndarray) -> Reverse:
    return Reverse(np.zeros(pixels.shape, np.uint8), pixels.astype(np.float32))


# Bits per dimension


def test_bits_per_dim_of_a_uniform_model_are_its_bits() -> None:
    uniform = np.array([-D * 5 * math.log(2)])
    assert bits_per_dim(uniform, D).tolist() == pytest.approx([5.0])


def test_bits_per_dim_are_in_double_precision() -> None:
    nats = np.array([-1234.5678], np.float32)
    assert bits_per_dim(nats, D).dtype == np.float64
    assert bits_per_dim(nats, D)[0] == -float(nats[0]) / (D * math.log(2))


def test_scores_say_which_model_version_and_seed_they_are_of() -> None:
    scores = _scorer(1, 2, 3).score(_nats(1.5, 2.5), seed=11)
    assert (scores.model, scores.version, scores.seed, len(scores)) == ("m", 7, 11, 2)
    np.testing.assert_allclose(scores.bits_per_dim, [1.5, 2.5], rtol=1e-6)
    np.testing.assert_array_equal(scores.log_likelihood, _nats(1.5, 2.5).astype(np.float64))


# Percentiles


@pytest.mark.parametrize(
    ("bits", "percentile"),
    [
        (0.5, 100),  # likelier than all
        (1, 87.5),  # three of four less likely, and itself by half
        (1.5, 75),
        (2, 50),  # one of four less likely, and two ties
        (2.5, 25),
        (3, 12.5),
        (9, 0),  # less likely than all
    ],
)
def test_a_percentile_is_the_share_of_held_out_images_that_are_less_likely_with_ties_by_half(
    bits: float, percentile: float
) -> None:
    scores = _scorer(1, 2, 2, 3).score(_nats(bits), DEFAULT_SEED)
    assert scores.percentile.tolist() == [percentile]


def test_percentiles_do_not_depend_on_the_order_of_the_calibration() -> None:
    asked = _nats(0.5, 1, 1.5, 2, 2.5, 3, 9)
    shuffled = _scorer(2, 3, 1, 2).score(asked, DEFAULT_SEED)
    np.testing.assert_array_equal(
        shuffled.percentile, _scorer(1, 2, 2, 3).score(asked, DEFAULT_SEED).percentile
    )


def test_a_higher_likelihood_never_has_a_lower_percentile(rng: np.random.Generator) -> None:
    scorer = _scorer(*rng.normal(3, 0.5, 100))
    nats = np.sort(_nats(*rng.normal(3, 0.7, 500)))
    percentile = scorer.score(nats, DEFAULT_SEED).percentile
    assert (np.diff(percentile) >= 0).all()
    assert (percentile[0], percentile[-1]) == (0, 100)


def test_the_images_that_a_bundle_was_calibrated_with_have_uniform_percentiles(bundle: Bundle) -> None:
    from glowserve_training.data import DataConfig, load_images

    held_out = load_images(DataConfig(data="digits", image_size=8, channels=1)).validation
    forward = Engine(bundle, RuntimeConfig(device="cpu")).forward(
        held_out, dequantization_noise(DEFAULT_SEED, held_out)
    )
    percentile = Scorer(bundle.manifest).score(forward.log_likelihood, DEFAULT_SEED).percentile
    n = len(held_out)
    # Up to an image or two: a score may differ in its last bit with the batch it was computed in.
    np.testing.assert_allclose(np.sort(percentile), 100 * (np.arange(n) + 0.5) / n, atol=200 / n)
    assert percentile.mean() == pytest.approx(50, abs=0.5)


def test_unseen_images_of_the_same_kind_have_percentiles_all_over_the_range(
    bundle: Bundle, digits: UInt8Array
) -> None:
    forward = Engine(bundle, RuntimeConfig(device="cpu")).forward(
        digits, dequantization_noise(DEFAULT_SEED, digits)
    )
    percentile = Scorer(bundle.manifest).score(forward.log_likelihood, DEFAULT_SEED).percentile
    assert percentile.mean() == pytest.approx(50, abs=12)
    counts, _ = np.histogram(percentile, bins=4, range=(0, 100))
    assert counts.min() > len(digits) / 8


# What is not finite


def test_a_likelihood_that_is_not_finite_is_the_lowest_of_all_and_leaves_its_neighbours_alone() -> None:
    scorer = _scorer(1, 2, 2, 3)
    nats = _nats(1, 9, 2, 9, 3, 9, 1)
    nats[[1, 3, 5]] = -np.inf, np.nan, np.inf
    scores = scorer.score(nats, DEFAULT_SEED)
    lost = [1, 3, 5]
    assert scores.finite.tolist() == [i not in lost for i in range(7)]
    assert scores.log_likelihood[lost].tolist() == [-np.inf] * 3
    assert scores.bits_per_dim[lost].tolist() == [np.inf] * 3
    assert scores.percentile[lost].tolist() == [0] * 3
    alone = scorer.score(nats[scores.finite], DEFAULT_SEED)
    for name in ("log_likelihood", "bits_per_dim", "percentile", "finite"):
        np.testing.assert_array_equal(getattr(scores, name)[scores.finite], getattr(alone, name))


def test_finite_latents_and_images_pass() -> None:
    require_finite_latents(np.full((2, D), 3e38, np.float32))
    require_finite_images(_reverse(np.full((2, 4, 4, 1), -3e38)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_latents_that_are_not_finite_are_refused_by_the_first_image(value: float) -> None:
    latent = np.zeros((4, D), np.float32)
    latent[2, 63] = latent[3, 0] = value
    with pytest.raises(NotFiniteError, match=r"^images: image 2 lies so far from the model's data"):
        require_finite_latents(latent)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused_by_the_first_row(value: float) -> None:
    pixels = np.zeros((4, 4, 4, 1))
    pixels[1, 3, 3, 0] = pixels[3] = value
    with pytest.raises(NotFiniteError, match=r"^latents: row 1 does not decode to a finite image$"):
        require_finite_images(_reverse(pixels))
    with pytest.raises(NotFiniteError, match=r"^temperature: sample 33 does not decode to a finite image$"):
        require_finite_images(_reverse(pixels), first=32, what="temperature: sample")


# What comes back


def _decoded(images: UInt8Array) -> Reverse:
    return Reverse(images, images.astype(np.float32))


def test_values_that_come_back_in_another_bin_are_counted_for_each_image() -> None:
    images = np.zeros((3, 2, 2, 1), np.uint8)
    decoded = images.copy()
    decoded[1, 0, 0, 0] = 255
    decoded[2] = 128
    assert mismatched_values(images, _decoded(decoded), 8).tolist() == [0, 1, 4]


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_only_another_bin_is_a_mismatch(n_bits: int) -> None:
    width = 2 ** (8 - n_bits)
    greys = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    first_of_bin = greys // width * width
    assert mismatched_values(greys, _decoded(first_of_bin.astype(np.uint8)), n_bits).tolist() == [0]
    # A step of one grey value changes the bin of those on its border: all bins but the last have one above.
    brighter = np.minimum(greys.astype(int) + 1, 255).astype(np.uint8)
    assert mismatched_values(greys, _decoded(brighter), n_bits).tolist() == [2**n_bits - 1]


def test_a_value_that_is_not_finite_has_not_come_back_whatever_its_byte() -> None:
    images = np.full((1, 2, 2, 1), 7, np.uint8)
    pixels = np.full((1, 2, 2, 1), 7.5, np.float32)
    pixels[0, 0, 0, 0] = np.nan
    assert mismatched_values(images, Reverse(images, pixels), 8).tolist() == [1]
