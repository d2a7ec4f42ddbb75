"""Transforms of couplings: their scales, and the bounds of these."""

from __future__ import annotations

import math

import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.layers import (
    Additive,
    Affine,
    AffineSpline,
    DoubleSigmoid,
    SigmoidAffine,
    TanhAffine,
    Transform,
)
from glowserve_training.layers.transforms import dequantization_transform_of, transform_of
from torch import Tensor

A = 3
TRANSFORMS = {
    "additive": Additive(),
    "sigmoid": SigmoidAffine(),
    "double sigmoid": DoubleSigmoid(),
    "tanh": TanhAffine(A),
    "spline": AffineSpline(TanhAffine(A), bins=8, interval=3.0),
}


def random(generator: torch.Generator, transform: Transform, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """Values and a network's output."""
    x, h = (
        torch.randn(2, channels, 4, 4, generator=generator, dtype=torch.float64)
        for channels in (A, A * transform.outputs)
    )
    return x, size * h


@pytest.mark.parametrize(
    ("name", "scale"),
    [("additive", 1), ("sigmoid", 1 / (1 + math.exp(-2))), ("double sigmoid", 1), ("tanh", 1), ("spline", 1)],
)
def test_the_output_0_of_a_network_means_no_shift_and_this_scale(
    name: str, scale: float, generator: torch.Generator
) -> None:
    x, h = random(generator, TRANSFORMS[name])

    y, log_scale = TRANSFORMS[name](x, torch.zeros_like(h))

    torch.testing.assert_close(y, scale * x)
    torch.testing.assert_close(log_scale, torch.full_like(x, math.log(scale)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_log_scale_is_the_log_derivative_of_each_value(name: str, generator: torch.Generator) -> None:
    transform = TRANSFORMS[name]
    x, h = random(generator, transform)
    x.requires_grad_()

    y, log_scale = transform(x, h)
    (derivative,) = torch.autograd.grad(y.sum(), x)

    torch.testing.assert_close(log_scale.expand_as(x), derivative.log())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_inverse_inverts(name: str, generator: torch.Generator) -> None:
    transform = TRANSFORMS[name]
    x, h = random(generator, transform)

    y, log_scale = transform(x, h)
    back, inverse_log_scale = transform.inverse(y, h)

    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(inverse_log_scale, -log_scale, rtol=0, atol=1e-12)


def test_the_shift_is_in_the_first_outputs(generator: torch.Generator) -> None:
    affine: list[Affine] = [SigmoidAffine(), DoubleSigmoid(), TanhAffine(A)]
    for transform in affine:
        _, h = random(generator, transform)
        shift, log_scale = transform.shift_and_log_scale(h)
        moved, same = transform.shift_and_log_scale(torch.cat((h[:, :A] + 1, h[:, A:]), dim=1))

        torch.testing.assert_close(moved, shift + 1)
        assert torch.equal(same, log_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parameter", [-1e30, -1e3, 0.0, 1e3, 1e30])
@pytest.mark.parametrize("output", [-1e30, -1e3, 1e3, 1e30])
@pytest.mark.parametrize("spline", [False, True])
def test_no_output_and_no_parameter_take_a_scale_beyond_its_bound(
    spline: bool, output: float, parameter: float, dtype: torch.dtype
) -> None:
    affine = TanhAffine(A).to(dtype)
    transform = AffineSpline(affine, bins=8, interval=3.0) if spline else affine
    torch.nn.init.constant_(affine.unbounded_log_f, parameter)
    x = torch.ones(2, A, 4, 4, dtype=dtype)
    rest = torch.full((2, A * (transform.outputs - 1), 4, 4), output, dtype=dtype)
    h = torch.cat((torch.zeros_like(x), rest), dim=1)

    with torch.no_grad():
        y, log_scale = transform(x, h)
        back, _ = transform.inverse(y, h)
        bound = affine.bound()

    assert 0.25 * (1 - 1e-6) <= float(bound.min()) <= float(bound.max()) <= 4 * (1 + 1e-6)
    assert float(log_scale.abs().max()) <= transform.log_scale_bound() * (1 + 1e-6)
    assert affine.log_scale_bound() <= 4 * (1 + 1e-6)  # a scale of 1/55 to 55
    torch.testing.assert_close(back, x)


def test_tanh_scales_differ_by_channel_and_learn_their_bounds(generator: torch.Generator) -> None:
    transform = TanhAffine(A).double()
    with torch.no_grad():
        transform.unbounded_log_f.copy_(torch.tensor([-1.0, 0.0, 1.0]).reshape(A, 1, 1))
    x, h = random(generator, transform, size=100)

    y, log_scale = transform(x, h)
    (y.square().mean() - log_scale.mean()).backward()

    bound = transform.bound().flatten()
    torch.testing.assert_close(log_scale.abs().amax((0, 2, 3)), bound)
    assert bound.diff().min() > 0.3
    assert transform.unbounded_log_f.grad is not None
    assert transform.unbounded_log_f.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("coupling", "scale", "of_flow", "of_dequantization"),
    [
        ("affine", "tanh", TanhAffine, TanhAffine),
        ("affine", "sigmoid", SigmoidAffine, DoubleSigmoid),
        ("spline", "tanh", AffineSpline, TanhAffine),
        ("additive", "tanh", Additive, TanhAffine),
        ("additive", "sigmoid", Additive, DoubleSigmoid),
    ],
)
def test_the_configuration_chooses_the_transforms(
    coupling: str, scale: str, of_flow: type[Transform], of_dequantization: type[Transform]
) -> None:
    config = GlowConfig(image_size=8, channels=3, coupling=coupling, coupling_scale=scale)

    assert type(transform_of(config, 6)) is of_flow
    assert type(dequantization_transform_of(config, 6)) is of_dequantization
