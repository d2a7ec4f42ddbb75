"""Evaluation of hand-made models, whose figures are known, and of a checkpoint."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import evaluation_batches
from glowserve_training.evaluation import (
    Decoded,
    EvaluatedGlow,
    Float32Array,
    Float64Array,
    ImageTerms,
    evaluate,
    measure_likelihood,
    measure_round_trip,
)

from glowserve.images import UInt8Array

SHAPE = (4, 4, 1)
D = 16


class Linear:
    """Two levels; the likelihood falls with the noise; latents are dequantized values in bins."""

    def __init__(
        self, n_bits: int = 8, spoil: Callable[[Float32Array], Float32Array] = lambda pixels: pixels
    ) -> None:
        self.n_bits = n_bits
        self.spoil = spoil
        self.noise: list[Float32Array] = []

    def terms(self, images: UInt8Array, noise: Float32Array) -> ImageTerms:
        self.noise.append(noise)
        grey = images.astype(np.float64).reshape(-1, D).sum(axis=1)
        spread = 40 * noise.astype(np.float64).reshape(-1, D).mean(axis=1)
        return ImageTerms(
            np.stack((-grey, -spread), axis=1), np.stack((0.5 * spread, 0.25 * grey), axis=1), -7.5
        )

    def dequantize(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        return (images >> (8 - self.n_bits)) + noise

    def encode(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        return self.dequantize(images, noise).reshape(len(images), -1)

    def decode(self, latent: Float32Array) -> Decoded:
        pixels = self.spoil(latent.reshape(-1, *SHAPE).copy())
        with np.errstate(invalid="ignore"):
            bins = np.clip(np.floor(pixels), 0, 2**self.n_bits - 1).astype(np.uint8)
        return Decoded(bins << (8 - self.n_bits), pixels)


class Overflowing(Linear):
    """With the second draw, image 3 has no finite likelihood."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def terms(self, images: UInt8Array, noise: Float32Array) -> ImageTerms:
        terms = super().terms(images, noise)
        if len(self.noise) == 2:
            terms.log_det[3, 1] = self.value
        return terms


@pytest.fixture
def images(rng: np.random.Generator) -> UInt8Array:
    """Images for more than two batches."""
    return rng.integers(0, 256, (150, *SHAPE), dtype=np.uint8)


def totals(model: Linear, images: UInt8Array, draw: int) -> Float64Array:
    """The log-likelihoods of one draw, batch by batch."""
    batches = evaluation_batches(images, 64, draw=draw)
    return np.concatenate([model.terms(part.numpy(), noise.numpy()).total() for part, noise in batches])


def test_the_mean_and_its_standard_error_are_those_of_the_images(images: UInt8Array) -> None:
    found = measure_likelihood(Linear(), images)
    bits = [-nats / (D * math.log(2)) for nats in totals(Linear(), images, 0).tolist()]
    assert (found.images, found.importance_samples, found.non_finite) == (150, 1, 0)
    assert found.bits_per_dim == pytest.approx(statistics.fmean(bits), rel=1e-12)
    assert found.standard_error == pytest.approx(statistics.stdev(bits) / math.sqrt(150), rel=1e-12)


def test_one_image_has_no_standard_error(images: UInt8Array) -> None:
    found = measure_likelihood(Linear(), images[:1])
    assert math.isfinite(found.bits_per_dim)
    assert math.isnan(found.standard_error)


def test_the_likelihoods_of_several_draws_are_averaged(images: UInt8Array) -> None:
    draws = np.stack([totals(Linear(), images, draw) for draw in range(5)], axis=1)
    assert (draws.std(axis=1) > 0.1).all(), "the draws must differ for this test to mean anything"
    bits = []
    for image in draws.tolist():
        most = max(image)
        log_mean = most + math.log(sum(math.exp(nats - most) for nats in image) / 5)
        bits.append(-log_mean / (D * math.log(2)))
    found = measure_likelihood(Linear(), images, importance_samples=5)
    assert found.importance_samples == 5
    assert found.bits_per_dim == pytest.approx(statistics.fmean(bits), rel=1e-12)
    assert found.standard_error == pytest.approx(statistics.stdev(bits) / math.sqrt(150), rel=1e-12)


def test_the_figures_of_the_levels_are_means_of_the_first_draw_and_add_up_to_it(images: UInt8Array) -> None:
    found = measure_likelihood(Linear(), images, importance_samples=3)
    batches = evaluation_batches(images, 64)
    spread = 40 * np.concatenate([noise.numpy() for _, noise in batches]).astype(np.float64).mean()
    grey = images.reshape(150, -1).sum(axis=1).mean()
    bits = D * math.log(2)
    first, second = found.levels
    assert (first.level, second.level) == (1, 2)
    assert first.log_prior_bits_per_dim == pytest.approx(grey / bits)
    assert second.log_prior_bits_per_dim == pytest.approx(spread / bits)
    assert first.log_det_bits_per_dim == pytest.approx(-0.5 * spread / bits)
    assert second.log_det_bits_per_dim == pytest.approx(-0.25 * grey / bits)
    assert found.constant_bits_per_dim == pytest.approx(7.5 / bits)
    assert found.first_draw_bits_per_dim() == pytest.approx(-totals(Linear(), images, 0).mean() / bits)
    assert found.first_draw_bits_per_dim() != pytest.approx(found.bits_per_dim, abs=1e-3)


def test_noise_depends_only_on_the_draw_and_the_images_index(images: UInt8Array) -> None:
    few, many = Linear(), Linear()
    measure_likelihood(few, images[:70], importance_samples=2)
    measure_likelihood(many, images, importance_samples=3)
    drawn = np.concatenate(few.noise).reshape(2, 70, -1)
    np.testing.assert_array_equal(drawn, np.concatenate(many.noise).reshape(3, 150, -1)[:2, :70])
    assert not (drawn[0] == drawn[1]).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_image_without_a_finite_likelihood_is_counted_and_included_in_the_mean(
    images: UInt8Array, value: float
) -> None:
    found = measure_likelihood(Overflowing(value), images[:10], importance_samples=2)
    assert found.non_finite == 1
    assert found.bits_per_dim == math.inf
    assert math.isnan(found.standard_error)


def test_no_images_and_no_draws_are_refused(images: UInt8Array) -> None:
    with pytest.raises(ValueError, match=r"^importance_samples is 0; it must be 1 or more$"):
        evaluate(Linear(), images, importance_samples=0)
    with pytest.raises(ValueError, match=r"^images is empty; it must hold 1 or more$"):
        evaluate(Linear(), images[:0])


@pytest.mark.parametrize("n_bits", [8, 4, 1])
def test_an_exact_inverse_is_recognized(images: UInt8Array, n_bits: int) -> None:
    found = measure_round_trip(Linear(n_bits), images)
    assert (found.images_exact, found.values_changed, found.largest_error) == (150, 0, 0)


def shifted(by: float) -> Callable[[Float32Array], Float32Array]:
    """Shifts two values of the first image of each of the three batches."""

    def spoil(pixels: Float32Array) -> Float32Array:
        pixels[0, 1, 2:4, 0] += by
        return pixels

    return spoil


def test_an_error_inside_the_bin_changes_no_value_but_is_measured(images: UInt8Array) -> None:
    found = measure_round_trip(Linear(4, shifted(-0.25)), images)
    assert (found.images_exact, found.values_changed, found.largest_error) == (150, 0, 0.25)


def test_a_wrong_inverse_is_recognized(images: UInt8Array) -> None:
    found = measure_round_trip(Linear(4, shifted(math.nan)), images)
    assert (found.images_exact, found.values_changed) == (147, 6)
    assert math.isnan(found.largest_error)
    grey = np.full_like(images, 0x77)
    found = evaluate(Linear(4, shifted(1.25)), grey).round_trip
    assert (found.images_exact, found.values_changed, found.largest_error) == (147, 6, 1.25)


def test_a_checkpoint_has_the_figure_of_its_training_and_its_terms_add_up_to_it(
    checkpoint: Path, digits: UInt8Array
) -> None:
    loaded = load_checkpoint(checkpoint)
    found = evaluate(EvaluatedGlow(loaded.model), digits)
    assert found.bits_per_dim == pytest.approx(loaded.training.metrics["test_bits_per_dim"], abs=1e-5)
    with torch.no_grad():
        nats = torch.cat([loaded.model.log_prob(*batch) for batch in evaluation_batches(digits, 64)])
    expected = -float(nats.double().mean()) / (64 * math.log(2))
    assert found.first_draw_bits_per_dim() == pytest.approx(expected, abs=1e-5)
    assert len(found.levels) == loaded.model.config.levels
    assert all(level.log_det_bits_per_dim for level in found.levels)


def test_a_checkpoint_reconstructs_its_test_images(checkpoint: Path, digits: UInt8Array) -> None:
    model = load_checkpoint(checkpoint).model
    found = measure_round_trip(EvaluatedGlow(model), digits)
    assert (found.images_exact, found.values_changed) == (len(digits), 0)
    assert 0 < found.largest_error < 0.1
    with torch.no_grad():
        model.levels[0].steps[0].actnorm.log_scale += 1  # type: ignore[index, union-attr]
        encoded = EvaluatedGlow(load_checkpoint(checkpoint).model)
    mixed = EvaluatedGlow(model)
    mixed.encode = encoded.encode  # type: ignore[method-assign]
    assert measure_round_trip(mixed, digits).images_exact < len(digits)


def test_more_draws_give_a_tighter_bound(checkpoint: Path, digits: UInt8Array) -> None:
    model = EvaluatedGlow(load_checkpoint(checkpoint).model)
    one, eight = (measure_likelihood(model, digits, importance_samples=m) for m in (1, 8))
    assert eight.bits_per_dim < one.bits_per_dim
    assert eight.levels == one.levels


def test_a_model_in_float64_is_evaluated_in_float64(checkpoint: Path, digits: UInt8Array) -> None:
    model = load_checkpoint(checkpoint).model
    single = evaluate(EvaluatedGlow(model), digits[:20])
    double = evaluate(EvaluatedGlow(model.double()), digits[:20])
    assert double.bits_per_dim == pytest.approx(single.bits_per_dim, abs=1e-5)
    assert double.round_trip.largest_error < single.round_trip.largest_error
