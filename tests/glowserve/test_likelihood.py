"""Bits per dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glowserve.likelihood import bits_per_dim

D = 64


def test_a_uniform_distribution_has_as_many_bits_per_dimension_as_a_value() -> None:
    assert bits_per_dim(-D * 5 * math.log(2), D) == pytest.approx(5)


def test_more_likely_images_have_fewer_bits_per_dimension() -> None:
    assert bits_per_dim(-10.0, D) < bits_per_dim(-20.0, D)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_keep_their_shape_and_precision(dtype: type) -> None:
    nats = np.array([[-1234.5678, 0.0]], dtype)
    bits = bits_per_dim(nats, D)
    assert (bits.shape, bits.dtype) == ((1, 2), dtype)
    np.testing.assert_allclose(bits, -nats / (D * math.log(2)), rtol=1e-6)


def test_an_infinite_log_likelihood_has_infinitely_many_bits() -> None:
    assert bits_per_dim(-math.inf, D) == math.inf


def test_tensors_stay_tensors() -> None:
    torch = pytest.importorskip("torch", reason="a client has no PyTorch")
    bits = bits_per_dim(torch.tensor([-1.0], dtype=torch.float64), D)
    assert (type(bits), bits.dtype) == (torch.Tensor, torch.float64)
    assert bits.item() == bits_per_dim(-1.0, D)
