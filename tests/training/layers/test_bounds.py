"""Smooth bounds of parameters."""

from __future__ import annotations

import pytest
import torch
from glowserve_training.layers.bounds import bounded, unbounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_no_finite_value_exceeds_its_bound(bound: float, dtype: torch.dtype) -> None:
    values = torch.tensor([-1e30, -10, -1, 0, 1, 10, 1e30], dtype=dtype)

    within = bounded(values, bound)

    assert float(within.abs().max()) == bound  # rounded: tanh itself stays below 1
    assert within.diff().min() >= 0
    assert float(within[3]) == 0


def test_small_values_hardly_change() -> None:
    values = torch.linspace(-0.1, 0.1, 9, dtype=torch.float64)

    torch.testing.assert_close(bounded(values, 3.0), values, rtol=0.001, atol=0)


def test_unbounded_is_the_inverse_of_bounded() -> None:
    values = torch.linspace(-2.8, 2.8, 9, dtype=torch.float64)

    torch.testing.assert_close(bounded(unbounded(values, 3.0), 3.0), values)
    torch.testing.assert_close(unbounded(bounded(values, 3.0), 3.0), values)
