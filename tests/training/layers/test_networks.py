"""The networks of couplings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from glowserve_training.layers import CouplingNetwork, HiddenConv2d, ZeroConv2d
from torch import Tensor, nn

from tests.training.layers.conftest import Prepare


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_hidden_convolution_folds_convolution_and_actnorm(
    kernel_size: int, prepared: Prepare, generator: torch.Generator
) -> None:
    hidden = HiddenConv2d(3, 5, kernel_size, actnorm=True)
    prepared(hidden)
    assert hidden.conv.bias is None
    assert hidden.actnorm is not None
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)

    weight, bias = hidden.weight_and_bias()

    expected, _ = hidden.actnorm(hidden.conv(x))
    torch.testing.assert_close(hidden(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        nn.functional.conv2d(x, weight, bias, padding=kernel_size // 2), expected, rtol=0, atol=1e-12
    )


def test_a_hidden_convolution_without_an_actnorm_has_a_bias(
    prepared: Prepare, generator: torch.Generator
) -> None:
    hidden = HiddenConv2d(3, 5, 3, actnorm=False)
    prepared(hidden)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)

    weight, bias = hidden.weight_and_bias()

    assert hidden.actnorm is None
    assert bias.abs().min() > 0
    assert torch.equal(hidden(x), nn.functional.conv2d(x, weight, bias, padding=1))


def test_the_first_batch_normalizes_the_hidden_layers_to_mean_0_and_variance_1(
    generator: torch.Generator,
) -> None:
    network = CouplingNetwork(4, 8, width=6, actnorm=True).double()
    hidden: list[Tensor] = []
    for layer in network:
        if isinstance(layer, HiddenConv2d):
            # Copied because ReLU works in place.
            layer.register_forward_hook(lambda _module, _input, y: hidden.append(y.detach().clone()))
    x = 5 + 3 * torch.randn(7, 4, 4, 4, generator=generator, dtype=torch.float64)

    network(x)
    first = [parameter.detach().clone() for parameter in network.parameters()]
    network(x + 9)

    assert len(hidden) == 4
    for y in hidden[:2]:
        variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-9)
    assert all(map(torch.equal, network.parameters(), first))  # the second batch changes nothing


def test_a_zero_convolution_is_initialized_as_zero_and_its_log_scale_is_multiplied_by_3(
    generator: torch.Generator,
) -> None:
    conv = ZeroConv2d(2, 3)
    x = torch.randn(2, 2, 4, 4, generator=generator)
    assert torch.equal(conv(x), torch.zeros(2, 3, 4, 4))

    nn.init.normal_(conv.conv.weight, generator=generator)
    plain = conv(x)
    nn.init.constant_(conv.log_scale, 0.5)

    torch.testing.assert_close(conv(x), plain * np.exp(1.5))
