"""Fixtures of the tests of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

from tests.training.conftest import Perturb

T = TypeVar("T")
Prepare = Callable[[nn.Module], nn.Module]


@pytest.fixture
def prepared(perturb: Perturb) -> Prepare:
    """Converts a layer to float64 and evaluation mode, and moves it away from its initial weights."""

    def prepare(layer: nn.Module) -> nn.Module:
        layer = layer.double().eval()
        perturb(layer)
        return layer

    return prepare


def in_double(make: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Makes a layer in float64: a matrix made in float32 is orthogonal only to 1e-7, even if converted later."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return make(*args, **kwargs)
    finally:
        torch.set_default_dtype(before)
