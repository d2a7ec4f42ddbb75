"""Smooth bounds: a parameter is free, and what the flow uses of it stays within a bound."""

from __future__ import annotations

import torch
from torch import Tensor


def bounded(values: Tensor, bound: float | None) -> Tensor:
    """B tanh(values / B), in (-B, B): nearly the values themselves while they are small against B. None: no bound."""
    return values if bound is None else bound * torch.tanh(values / bound)


def unbounded(values: Tensor, bound: float) -> Tensor:
    """The inverse of `bounded`, for |values| < B."""
    return bound * torch.atanh(values / bound)
