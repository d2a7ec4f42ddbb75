"""Conversion between bytes and the continuous values whose density a flow models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from glowserve_training.quantization import dequantize, from_bins, quantize, to_bins

from glowserve.likelihood import bits_per_dim

N_BITS = range(1, 9)
EVERY_BYTE = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("n_bits", N_BITS)
def test_to_bins_inverts_from_bins(n_bits: int) -> None:
    bins = torch.arange(2**n_bits, dtype=torch.uint8)

    images = from_bins(bins, n_bits)

    assert images.dtype == torch.uint8
    assert torch.equal(to_bins(images, n_bits), bins)


@pytest.mark.parametrize("n_bits", N_BITS)
def test_the_values_of_the_bins_are_spread_evenly_over_0_to_255(n_bits: int) -> None:
    images = from_bins(torch.arange(2**n_bits, dtype=torch.uint8), n_bits).double()

    assert images[0] == 0
    assert images[-1] == 255
    np.testing.assert_allclose(images, np.linspace(0, 255, 2**n_bits), rtol=0, atol=0.5)


@pytest.mark.parametrize("n_bits", N_BITS)
def test_each_bin_has_the_same_number_of_byte_values(n_bits: int) -> None:
    counts = torch.bincount(to_bins(EVERY_BYTE, n_bits).long())

    assert counts.tolist() == [2 ** (8 - n_bits)] * 2**n_bits


def test_with_8_bits_bytes_do_not_change() -> None:
    assert torch.equal(to_bins(EVERY_BYTE, 8), EVERY_BYTE)
    assert torch.equal(from_bins(EVERY_BYTE, 8), EVERY_BYTE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bits", N_BITS)
def test_the_center_of_a_bin_is_quantized_to_that_bin(n_bits: int, dtype: torch.dtype) -> None:
    noise = torch.full((256,), 0.5, dtype=dtype)

    y = dequantize(EVERY_BYTE, noise, n_bits)

    assert y.dtype == dtype
    assert torch.equal(quantize(y, n_bits), from_bins(to_bins(EVERY_BYTE, n_bits), n_bits))


@pytest.mark.parametrize("n_bits", N_BITS)
def test_dequantized_values_fill_their_bins_between_minus_0_5_and_0_5(n_bits: int) -> None:
    width = 2.0**-n_bits

    lowest = dequantize(EVERY_BYTE, torch.zeros(256, dtype=torch.float64), n_bits)
    highest = dequantize(EVERY_BYTE, torch.full((256,), 1 - 1e-9, dtype=torch.float64), n_bits)

    assert lowest.min() == -0.5
    assert 0.5 - 1e-8 < highest.max() < 0.5
    assert torch.equal(lowest.unique(), -0.5 + width * torch.arange(2**n_bits).double())
    assert ((highest - lowest) / width).sub(1).abs().max() < 1e-6


@pytest.mark.parametrize("n_bits", [1, 4, 8])
def test_values_outside_the_range_are_clipped(n_bits: int) -> None:
    y = torch.tensor([-1e9, -0.6, 0.5, 0.6, 1e9])

    assert quantize(y, n_bits).tolist() == [0, 0, 255, 255, 255]


def test_bits_per_dim_of_a_tensor_are_nats_divided_by_dimensions_and_ln_2() -> None:
    log_likelihood = -torch.tensor([3.0, 12.0], dtype=torch.float64) * np.log(2)

    torch.testing.assert_close(bits_per_dim(log_likelihood, 6), torch.tensor([0.5, 2.0], dtype=torch.float64))
