"""Rational-quadratic splines: bounded slopes, and exact inverses in float32."""

from __future__ import annotations

import math

import pytest
import torch
from glowserve_training.layers import AffineSpline, Spline, TanhAffine
from torch import Tensor

BINS = [2, 3, 8, 16]


def outputs(spline: Spline, n: int, size: float, generator: torch.Generator) -> Tensor:
    """Outputs of a network for one channel of n x 50 values."""
    return size * torch.randn(n, spline.outputs, 1, 50, generator=generator, dtype=torch.float64)


def values(n: int, size: float, generator: torch.Generator) -> Tensor:
    """Values within [-size, size]."""
    return size * (2 * torch.rand(n, 1, 1, 50, generator=generator, dtype=torch.float64) - 1)


def test_the_default_slopes_lie_between_a_hundredth_and_nine() -> None:
    assert Spline(8, 3.0).slopes() == pytest.approx((1 / 100, 9))


@pytest.mark.parametrize("bins", BINS)
def test_slopes_stay_within_their_bounds_whatever_the_network_predicts(
    bins: int, generator: torch.Generator
) -> None:
    spline = Spline(bins, 3.0)
    lowest, highest = spline.slopes()
    for size in (0.5, 2, 1e30):
        x = values(100, 3.5, generator)
        slope = spline(x, outputs(spline, 100, size, generator))[1].exp()
        assert lowest * (1 - 1e-12) <= float(slope.min()) <= float(slope.max()) <= highest * (1 + 1e-12)


@pytest.mark.parametrize("bins", [3, 8, 16])
def test_the_bounds_of_slopes_are_nearly_reached(bins: int) -> None:
    spline, middle = Spline(bins, 3.0), bins // 2
    x = torch.linspace(-3, 3, 3001, dtype=torch.float64).reshape(1, 1, 1, -1)
    low = torch.full((1, spline.outputs, 1, 3001), 50.0, dtype=torch.float64)
    low[:, middle] = -50
    lowest, highest = spline.slopes()

    assert float(spline(x, low)[1].exp().min()) == pytest.approx(lowest, rel=1e-3)
    assert float(spline(x, -low)[1].exp().max()) > 0.8 * highest


@pytest.mark.parametrize("bins", BINS)
def test_a_spline_is_increasing_and_continuous_and_its_slope_too(
    bins: int, generator: torch.Generator
) -> None:
    spline = Spline(bins, 2.0)
    x = torch.linspace(-2.5, 2.5, 20001, dtype=torch.float64).reshape(1, 1, 1, -1)
    h = 2 * torch.randn(1, spline.outputs, 1, 1, generator=generator, dtype=torch.float64)

    y, log_slope = spline(x, h.expand(-1, -1, -1, x.shape[3]))

    steps, width = y.diff(dim=3), float(x.diff(dim=3).max())
    means = (log_slope.exp()[..., 1:] + log_slope.exp()[..., :-1]) / 2
    assert float(steps.min()) > 0
    torch.testing.assert_close(steps / width, means, rtol=1e-3, atol=1e-3)
    assert float(log_slope.diff(dim=3).abs().max()) < 0.1


def test_values_outside_the_interval_and_at_its_ends_stay_the_same(generator: torch.Generator) -> None:
    spline = Spline(4, 1.5)
    x = torch.tensor([-math.inf, -2.0, -1.5, 1.5, 7.0, math.inf], dtype=torch.float64).reshape(1, 1, 1, -1)
    h = torch.randn(1, spline.outputs, 1, 6, generator=generator, dtype=torch.float64)

    for direction in (spline, spline.inverse):
        y, log_slope = direction(x, h)
        assert torch.equal(y, x)
        assert torch.equal(log_slope, torch.zeros_like(x))


def test_a_value_that_is_not_a_number_stays_so(generator: torch.Generator) -> None:
    spline = Spline(4, 1.5)
    x = torch.full((1, 1, 1, 50), math.nan, dtype=torch.float64)

    assert spline(x, outputs(spline, 1, 1, generator))[0].isnan().all()


@pytest.mark.parametrize("size", [0.1, 1, 10, 1e30])
def test_a_value_comes_back_in_float32(size: float, generator: torch.Generator) -> None:
    spline = Spline(8, 3.0)
    h, x = outputs(spline, 400, size, generator).float(), values(400, 3.5, generator).float()

    y, log_slope = spline(x, h)
    back, inverse_log_slope = spline.inverse(y, h)

    # Rounding y by half a unit in its last place moves x by that divided by the slope, at least 1/100.
    torch.testing.assert_close(back, x, rtol=0, atol=100 * 2.0**-22)
    torch.testing.assert_close(spline(back, h)[0], y, rtol=0, atol=9 * 2.0**-21)
    torch.testing.assert_close(inverse_log_slope, -log_slope, rtol=0, atol=2e-3)


def test_float32_is_as_exact_as_its_rounding_of_float64(generator: torch.Generator) -> None:
    spline = Spline(8, 3.0)
    h, x = outputs(spline, 400, 1, generator), values(400, 3.5, generator)

    y, log_slope = spline(x.float(), h.float())
    expected, expected_log_slope = spline(x, h)

    torch.testing.assert_close(y.double(), expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(log_slope.double(), expected_log_slope, rtol=0, atol=5e-5)


def test_a_hostile_gradient_keeps_the_bound_and_the_way_back(generator: torch.Generator) -> None:
    """Of the network's outputs themselves, which no network could move further."""
    transform = AffineSpline(TanhAffine(1), bins=8, interval=3.0)
    x = values(20, 3, generator).float()
    h = torch.zeros(20, transform.outputs, 1, 50, requires_grad=True)
    optimizer = torch.optim.Adam([h, *transform.parameters()], lr=0.5)
    for sign in (1, -1):
        for _ in range(200):
            optimizer.zero_grad()
            y, log_scale = transform(x, h)
            (sign * log_scale.sum()).backward()
            optimizer.step()
        with torch.no_grad():
            y, log_scale = transform(x, h)
            back, _ = transform.inverse(y, h)
            bound = transform.log_scale_bound()
        assert float(log_scale.abs().max()) <= bound * (1 + 1e-5)
        # A value of the affine map is at most a few, rounded to 24 bits, and the slopes of both are bounded.
        allowed = 4 * 2.0**-24 * (1 + y.abs()) * math.exp(bound)
        assert bool(((back - x).abs() <= allowed).all())
