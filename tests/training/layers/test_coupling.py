"""Couplings and their networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from glowserve_training.layers import (
    AdditiveCoupling,
    AffineCoupling,
    Bijector,
    HiddenConv2d,
    ZeroConv2d,
)
from torch import Tensor, nn

from tests.training.layers.conftest import Prepare


@pytest.mark.parametrize("channels", [2, 3, 5, 8])
@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
def test_a_coupling_passes_its_first_half_and_transforms_the_second(
    coupling: type[AffineCoupling] | type[AdditiveCoupling],
    channels: int,
    prepared: Prepare,
    generator: torch.Generator,
) -> None:
    layer = prepared(coupling(channels, width=6))
    x = torch.randn(2, channels, 4, 4, generator=generator, dtype=torch.float64)

    y, _ = layer(x)

    half = channels // 2
    assert torch.equal(y[:, :half], x[:, :half])
    assert (y[:, half:] - x[:, half:]).abs().amin() > 0


def test_an_additive_coupling_is_initialized_as_the_identity(generator: torch.Generator) -> None:
    x = torch.randn(2, 4, 4, 4, generator=generator)

    y, log_det = AdditiveCoupling(4, width=6)(x)

    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(2))


def test_an_affine_coupling_is_initialized_with_scale_sigmoid_of_2(generator: torch.Generator) -> None:
    x = torch.randn(2, 4, 4, 4, generator=generator)

    y, log_det = AffineCoupling(4, width=6)(x)

    scale = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(y[:, 2:], x[:, 2:] * scale)
    torch.testing.assert_close(log_det, (2 * 4 * 4 * scale.log()).expand(2))


@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
def test_a_coupling_of_one_channel_is_refused(coupling: Callable[..., Bijector]) -> None:
    with pytest.raises(ValueError, match="channels is 1 and must be 2 or more"):
        coupling(1, width=6)


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


def test_the_first_batch_normalizes_the_hidden_layers_of_a_coupling_to_mean_0_and_variance_1(
    generator: torch.Generator,
) -> None:
    coupling = AffineCoupling(4, width=6, actnorm=True).double()
    hidden: list[Tensor] = []
    for layer in coupling.network:
        if isinstance(layer, HiddenConv2d):
            # Copied because ReLU works in place.
            layer.register_forward_hook(lambda _module, _input, y: hidden.append(y.detach().clone()))
    x = 5 + 3 * torch.randn(7, 4, 4, 4, generator=generator, dtype=torch.float64)

    coupling(x)
    first = [parameter.detach().clone() for parameter in coupling.parameters()]
    coupling(x + 9)

    assert len(hidden) == 4
    for y in hidden[:2]:
        variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-9)
    assert all(map(torch.equal, coupling.parameters(), first))  # the second batch changes nothing


@pytest.mark.parametrize("coupling", [AffineCoupling, AdditiveCoupling])
def test_scale_range_has_the_smallest_and_the_largest_scale(
    coupling: type[AffineCoupling] | type[AdditiveCoupling],
    prepared: Prepare,
    generator: torch.Generator,
) -> None:
    layer = prepared(coupling(4, width=6))
    x = torch.randn(3, 4, 4, 4, generator=generator, dtype=torch.float64)
    twice = x.clone()
    twice[:, 2:] += 1  # this difference is multiplied by the scale

    scales = (layer(twice)[0] - layer(x)[0])[:, 2:].detach()
    smallest, largest = layer.scale_range(layer.network(x[:, :2])).tolist()

    assert smallest == pytest.approx(float(scales.min()), rel=1e-6)
    assert largest == pytest.approx(float(scales.max()), rel=1e-6)
    assert (largest > smallest + 0.01) == (coupling is AffineCoupling)


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
