"""Bytes in bins: with n_bits below 8, a model sees only the highest bits of each byte."""

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


def quantize(pixels: Tensor, n_bits: int) -> Tensor:
    """Bins with noise, clipped to the range of bins, to the uint8 values that represent the bins."""
    return from_bins(pixels.floor().clamp(0, 2**n_bits - 1), n_bits)
