"""From bins and noise to the flow's input, and back."""

from __future__ import annotations

import math

import pytest
import torch
from glowserve_training.config import PREPROCESSINGS
from glowserve_training.dequantization import Dequantized
from glowserve_training.preprocessing import ALPHA, PREPROCESSING_CLASSES, Centre, Logit, Preprocessing
from torch import Tensor

N_BITS = range(1, 9)


def make(name: str, n_bits: int) -> Preprocessing:
    return PREPROCESSING_CLASSES[name](n_bits)


def random(n_bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bins and noise, [3, 2, 4, 4] each, float64."""
    shape = (3, 2, 4, 4)
    bins = torch.randint(0, 2**n_bits, shape, generator=generator).double()
    return bins, torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_bits", N_BITS)
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_the_log_determinant_is_that_of_the_map_of_s(
    name: str, n_bits: int, generator: torch.Generator
) -> None:
    bins, noise = random(n_bits, generator)
    noise.requires_grad_()

    y, log_det = make(name, n_bits)(bins, noise, 1 - noise)
    (derivative,) = torch.autograd.grad(y.sum(), noise)  # it works value by value

    # s = (q + v) / 2^n_bits
    expected = (derivative * 2**n_bits).log().sum((1, 2, 3))
    assert log_det.shape == (3,)
    torch.testing.assert_close(log_det.expand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bits", N_BITS)
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_the_inverse_gives_the_pixels_back(
    name: str, n_bits: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    preprocessing = make(name, n_bits)
    bins, noise = (part.to(dtype) for part in random(n_bits, generator))

    y, _ = preprocessing(bins, noise, 1 - noise)

    assert y.dtype == dtype
    # float32 knows s to 2^-24, and a pixel to 2^n_bits times that.
    tolerance = 2**n_bits * (3e-7 if dtype == torch.float32 else 1e-15)
    torch.testing.assert_close(preprocessing.inverse(y), bins + noise, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_bits", N_BITS)
def test_centred_values_fill_their_bins_between_minus_0_5_and_0_5(n_bits: int) -> None:
    bins, width = torch.arange(2**n_bits).double().reshape(1, 1, 1, -1), 2.0**-n_bits

    lowest, _ = Centre(n_bits)(bins, torch.zeros_like(bins), torch.ones_like(bins))
    highest, _ = Centre(n_bits)(bins, torch.full_like(bins, 1 - 1e-9), torch.full_like(bins, 1e-9))

    assert torch.equal(lowest, -0.5 + width * bins)
    assert 0.5 - 1e-8 < highest.max() < 0.5
    assert ((highest - lowest) / width).sub(1).abs().max() < 1e-6


@pytest.mark.parametrize("n_bits", N_BITS)
def test_logits_are_symmetric_and_cover_the_range_that_alpha_allows(n_bits: int) -> None:
    bins = torch.arange(2**n_bits).double().reshape(1, 1, 1, -1)
    noise = torch.linspace(0, 1, 2**n_bits).double().reshape(1, 1, 1, -1)

    y, log_det = Logit(n_bits)(bins, noise, 1 - noise)
    mirrored, mirrored_log_det = Logit(n_bits)(2**n_bits - 1 - bins, 1 - noise, noise)

    end = math.log((1 - ALPHA) / ALPHA)
    assert [float(y.min()), float(y.max())] == pytest.approx([-end, end])
    assert y.flatten().diff().min() > 0
    torch.testing.assert_close(mirrored, -y)
    torch.testing.assert_close(mirrored_log_det, log_det)


NEAR = [0.0, 2**-24, 1e-6, 1e-4, 0.01, 0.5]


@pytest.mark.parametrize("n_bits", N_BITS)
def test_logits_near_black_and_near_white_keep_the_digits_of_float32(n_bits: int) -> None:
    white = 2**n_bits - 1
    # Near white, 1 - v is what dequantization knows exactly.
    near_white = [(white, 1 - distance, distance) for distance in NEAR]
    near_black = [(0, distance, 1 - distance) for distance in NEAR]
    bins, noise, complement = (
        torch.tensor(part, dtype=torch.float64).reshape(-1, 1, 1, 1)
        for part in zip(*near_white, *near_black, strict=True)
    )
    preprocessing = Logit(n_bits)

    expected, expected_log_det = preprocessing(bins, noise, complement)
    y, log_det = preprocessing(bins.float(), noise.float(), complement.float())

    # A few times the resolution of numbers of this size, 11.5 at the ends. Of s in float32, 1 - s near white would have
    # lost all digits, and y would be wrong by up to 0.003.
    torch.testing.assert_close(y.double(), expected, rtol=5e-7, atol=2e-7)
    torch.testing.assert_close(log_det.double(), expected_log_det, rtol=5e-7, atol=2e-7)
    # Black and white are equally exact.
    torch.testing.assert_close(y[: len(NEAR)], -y[len(NEAR) :], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bin_", [0.0, 255.0])
@pytest.mark.parametrize("v", [0.0, 1.0])
def test_the_ends_of_the_range_have_finite_logits_and_gradients(bin_: float, v: float) -> None:
    bins, noise = (torch.full((1, 1, 2, 2), value) for value in (bin_, v))
    noise.requires_grad_()

    y, log_det = Logit(8)(bins, noise, 1 - noise)
    (y.sum() + log_det.sum()).backward()

    assert y.isfinite().all()
    assert log_det.isfinite().all()
    assert noise.grad is not None
    assert noise.grad.isfinite().all()


def test_dequantized_pixels_are_bins_with_noise_with_channels_last(generator: torch.Generator) -> None:
    bins, noise = random(3, generator)

    pixels = Dequantized(bins, noise, 1 - noise, torch.zeros(3)).pixels()

    assert pixels.shape == (3, 4, 4, 2)
    assert torch.equal(pixels.movedim(3, 1), bins + noise)


def test_every_choice_has_a_class() -> None:
    assert PREPROCESSING_CLASSES.keys() == set(PREPROCESSINGS)
