"""Bytes in bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from glowserve_training.quantization import from_bins, quantize, to_bins

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
def test_every_value_of_a_bin_is_quantized_to_that_bin(n_bits: int, dtype: torch.dtype) -> None:
    bins = to_bins(EVERY_BYTE, n_bits)

    for noise in (0.0, 0.5, 1 - 2**-15):
        assert torch.equal(quantize(bins.to(dtype) + noise, n_bits), from_bins(bins, n_bits))


@pytest.mark.parametrize("n_bits", N_BITS)
def test_values_outside_the_range_are_clipped(n_bits: int) -> None:
    pixels = torch.tensor([-1e9, -0.6, 2.0**n_bits, 2.0**n_bits + 0.6, 1e9, -torch.inf, torch.inf])

    assert quantize(pixels, n_bits).tolist() == [0, 0, 255, 255, 255, 0, 255]


def test_bits_per_dim_of_a_tensor_are_nats_divided_by_dimensions_and_ln_2() -> None:
    log_likelihood = -torch.tensor([3.0, 12.0], dtype=torch.float64) * np.log(2)

    torch.testing.assert_close(bits_per_dim(log_likelihood, 6), torch.tensor([0.5, 2.0], dtype=torch.float64))
