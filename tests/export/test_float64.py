"""Convolutions of the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from glowserve_export.float64 import Float64Convolutions, conv2d
from torch import nn


@pytest.mark.parametrize(("outputs", "inputs"), [(3, 8), (8, 3), (1, 2)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_result_is_that_of_pytorch(outputs: int, inputs: int, kernel: int) -> None:
    x = torch.randn(2, inputs, 6, 7, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, kernel, kernel, dtype=torch.float64)
    bias = torch.randn(outputs, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, padding=kernel // 2)
    torch.testing.assert_close(conv2d(x, weight, bias, padding=kernel // 2), expected, rtol=1e-13, atol=1e-13)
    with Float64Convolutions():
        torch.testing.assert_close(F.conv2d(x, weight, bias, padding=kernel // 2), expected)
        assert F.conv2d(x, weight, stride=2).shape == F.conv2d(x, weight, None, 2).shape


def test_layers_of_pytorch_are_computed_in_the_context_as_outside_of_it() -> None:
    layer, x = nn.Conv2d(8, 2, 3, padding=1).double(), torch.randn(2, 8, 6, 6, dtype=torch.float64)
    expected = layer(x)
    with Float64Convolutions():
        torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-13)
