"""Conversion between bytes and the continuous values whose density a flow models.

Uniform dequantization (Theis et al. 2016, section 3.1): a byte falls into one of 2^n_bits bins q, and
y = (q + noise) / 2^n_bits - 0.5 with noise uniform in [0, 1). The log-density of y plus
the log-volume of the bins, -D n_bits ln 2, is in expectation a lower bound of the log-probability of the bins.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_bins(images: Tensor, n_bits: int) -> Tensor:
    """uint8 values of any shape to their bins, uint8 in 0 to 2^n_bits - 1."""
    bins: Tensor = images >> (8 - n_bits)
    return bins


def from_bins(bins: Tensor, n_bits: int) -> Tensor:
    """Bins to the uint8 values that represent them, spread evenly over 0 to 255; `to_bins` inverts it."""
    values: Tensor = (bins.double() * (255 / (2**n_bits - 1))).round().to(torch.uint8)
    return values


def dequantize(images: Tensor, noise: Tensor, n_bits: int) -> Tensor:
    """uint8 images and noise in [0, 1) of the same shape, to values in [-0.5, 0.5) of the noise's dtype."""
    y: Tensor = (to_bins(images, n_bits).to(noise.dtype) + noise) / 2**n_bits - 0.5
    return y


def quantize(y: Tensor, n_bits: int) -> Tensor:
    """Values, clipped to [-0.5, 0.5), to the uint8 values that represent their bins."""
    bins = ((y + 0.5) * 2**n_bits).floor().clamp(0, 2**n_bits - 1)
    return from_bins(bins, n_bits)
