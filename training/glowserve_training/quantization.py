"""Between the bytes of an image and the continuous values that a flow has a density for.

Uniform dequantization (Theis et al. 2016, section 3.1): a byte falls into one of 2^n_bits bins q, and
y = (q + noise) / 2^n_bits - 0.5 with noise uniform in [0, 1). The density of y, times the volume
2^-n_bits of a bin in each of the D dimensions, estimates the probability of the bins from below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def to_bins(images: Tensor, n_bits: int) -> Tensor:
    """The bins of grey values: uint8 of any shape, to uint8 in 0 to 2^n_bits - 1."""
    bins: Tensor = images >> (8 - n_bits)
    return bins


def from_bins(bins: Tensor, n_bits: int) -> Tensor:
    """The grey value that stands for a bin, spread over 0 to 255; `to_bins` gives the bin back."""
    greys: Tensor = (bins.double() * (255 / (2**n_bits - 1))).round().to(torch.uint8)
    return greys


def dequantize(images: Tensor, noise: Tensor, n_bits: int) -> Tensor:
    """uint8 images and noise in [0, 1) of the same shape, to values in [-0.5, 0.5) of the noise's dtype."""
    y: Tensor = (to_bins(images, n_bits).to(noise.dtype) + noise) / 2**n_bits - 0.5
    return y


def quantize(y: Tensor, n_bits: int) -> Tensor:
    """Values, clipped to [-0.5, 0.5), to the uint8 images that stand for their bins."""
    bins = ((y + 0.5) * 2**n_bits).floor().clamp(0, 2**n_bits - 1)
    return from_bins(bins, n_bits)


def bits_per_dim(log_likelihood: Tensor, dimensions: int) -> Tensor:
    """Nats of discrete images to bits per dimension: -log_likelihood / (dimensions * ln 2)."""
    return -log_likelihood / (dimensions * math.log(2))
