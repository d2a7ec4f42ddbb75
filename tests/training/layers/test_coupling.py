"""A coupling is a mask, a network and a transform."""

from __future__ import annotations

import pytest
import torch
from glowserve_training.layers import (
    Additive,
    AffineSpline,
    ChannelMask,
    CheckerboardMask,
    Coupling,
    Mask,
    TanhAffine,
    Transform,
)

from tests.training.layers.conftest import Prepare

MASKS = [ChannelMask(4), ChannelMask(5, transforms_first=True), CheckerboardMask(3, parity=1)]


def channels_of(mask: Mask) -> int:
    return mask.active_channels + mask.passive_channels * isinstance(mask, ChannelMask)


@pytest.mark.parametrize("mask", MASKS)
def test_passive_values_pass_and_every_active_value_is_transformed(
    mask: Mask, prepared: Prepare, generator: torch.Generator
) -> None:
    layer = prepared(Coupling(mask, TanhAffine(mask.active_channels), width=6))
    x = torch.randn(2, channels_of(mask), 4, 5, generator=generator, dtype=torch.float64)

    change = layer(x)[0] - x

    _, of_active = mask.split(change)
    changed = mask.select(of_active)
    assert changed.abs().min() > 0
    assert int(change.count_nonzero()) == changed.numel() < x.numel()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("transform", [Additive, TanhAffine])
def test_a_coupling_is_initialized_as_the_identity(
    transform: type[Transform], mask: Mask, generator: torch.Generator
) -> None:
    made = Additive() if transform is Additive else TanhAffine(mask.active_channels)
    x = torch.randn(2, channels_of(mask), 4, 4, generator=generator)

    y, log_det = Coupling(mask, made, width=6, actnorm=True)(x)

    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(2))


@pytest.mark.parametrize("mask", MASKS)
def test_a_coupling_with_a_spline_is_initialized_as_the_identity(
    mask: Mask, generator: torch.Generator
) -> None:
    x = torch.randn(2, channels_of(mask), 4, 4, generator=generator)

    y, log_det = Coupling(
        mask, AffineSpline(TanhAffine(mask.active_channels), bins=8, interval=3.0), width=6
    )(x)

    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_a_coupling_with_a_context_is_a_bijector_that_depends_on_it(
    mask: Mask, prepared: Prepare, generator: torch.Generator
) -> None:
    layer = prepared(Coupling(mask, TanhAffine(mask.active_channels), width=6, context=2))
    x, context = (
        torch.randn(1, channels, 3, 4, generator=generator, dtype=torch.float64)
        for channels in (channels_of(mask), 2)
    )

    y, log_det = layer(x, context)
    back, inverse_log_det = layer.inverse(y, context)
    other, _ = layer(x, context + 1)
    jacobian = torch.func.jacrev(lambda values: layer(values, context)[0].flatten())(x)

    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-12)
    expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet
    torch.testing.assert_close(log_det, expected[None], rtol=0, atol=1e-9)
    assert (other - y).abs().max() > 1e-3


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["additive", "tanh"])
def test_scale_range_has_the_smallest_and_the_largest_scale_of_active_values(
    name: str, mask: Mask, prepared: Prepare, generator: torch.Generator
) -> None:
    transform = Additive() if name == "additive" else TanhAffine(mask.active_channels)
    layer = prepared(Coupling(mask, transform, width=6))
    x = torch.randn(3, channels_of(mask), 4, 5, generator=generator, dtype=torch.float64)
    passive, active = mask.split(x)

    # A difference of 1 in an active value is multiplied by its scale.
    change = layer(mask.join(x, active + 1))[0] - layer(x)[0]
    scales = mask.select(mask.split(change)[1]).detach()
    _, log_scale = layer.transform(active, layer.network(passive))
    smallest, largest = layer.scale_range(log_scale).tolist()

    assert smallest == pytest.approx(float(scales.min()), rel=1e-6)
    assert largest == pytest.approx(float(scales.max()), rel=1e-6)
    assert (largest > smallest + 0.01) == (name == "tanh")
