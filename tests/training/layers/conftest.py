"""Fixtures of the tests of layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests.training.conftest import Perturb

Prepare = Callable[[nn.Module], nn.Module]


@pytest.fixture
def prepared(perturb: Perturb) -> Prepare:
    """Converts a layer to float64 and evaluation mode, and moves it away from its initial weights."""

    def prepare(layer: nn.Module) -> nn.Module:
        layer = layer.double().eval()
        perturb(layer)
        return layer

    return prepare
