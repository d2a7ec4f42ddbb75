"""Q L U: the condition number of W has a bound, whatever the parameters are and however they are trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.layers import FlowStep, QLUConv1x1
from glowserve_training.layers.qlu import CONDITION_BOUND, LOG_S_BOUND, NORM_BOUND, _bounded_norm
from glowserve_training.layers.step import ACTNORM_BOUND, linear_parts
from torch import Tensor

from tests.training.layers.conftest import Prepare

# The bounds hold in exact arithmetic. float32 rounds the products of which W is made, which moves its smallest singular
# value by up to about sqrt(C) * 2^-24 of the largest: by 0.3 % at the bound with C = 192.
ROUNDING = 1.01


def spectral_norms(matrices: Tensor) -> Tensor:
    """In float64, [...]."""
    return torch.linalg.matrix_norm(matrices.detach().double(), 2)


def conditions(weights: Tensor) -> list[float]:
    """The condition number of each W of [K, C, C], in float64."""
    return list(torch.linalg.cond(weights.detach().double()).tolist())


# The norm


def nilpotent(channels: int, generator: torch.Generator) -> Tensor:
    return torch.randn(channels, channels, generator=generator).tril(-1)


def one_entry(channels: int, generator: torch.Generator) -> Tensor:
    matrix = torch.zeros(channels, channels)
    matrix[-1, 0] = 1
    return matrix


def rank_one(channels: int, generator: torch.Generator) -> Tensor:
    column, row = torch.randn(2, channels, generator=generator)
    return torch.outer(column, row).tril(-channels // 2)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-3, 0.1, 0.75, 1.0, 7.0, 1e3, 1e10, 1e19, 1e30])
@pytest.mark.parametrize("channels", [2, 12, 192])
@pytest.mark.parametrize("make", [nilpotent, one_entry, rank_one])
def test_the_norm_stays_below_its_bound_at_every_scale(
    make: Callable[[int, torch.Generator], Tensor], channels: int, scale: float, generator: torch.Generator
) -> None:
    n = (scale * make(channels, generator)).requires_grad_()

    within = _bounded_norm(n)
    within.sum().backward()

    assert float(spectral_norms(within)) <= NORM_BOUND * (1 + 1e-6)
    assert n.grad is not None
    assert n.grad.isfinite().all()
    # Only the length changes, and by less than a factor of 2 more than the bound makes necessary.
    directions = [matrix.detach().double() / matrix.detach().double().norm() for matrix in (within, n)]
    torch.testing.assert_close(*directions, rtol=1e-5, atol=1e-6)
    assert float(spectral_norms(within)) > 0.5 * min(NORM_BOUND, float(spectral_norms(n)))


def test_a_norm_that_is_small_against_the_bound_hardly_changes(generator: torch.Generator) -> None:
    n = nilpotent(12, generator).double()
    n *= NORM_BOUND / 3 / torch.linalg.matrix_norm(n, 2)

    torch.testing.assert_close(_bounded_norm(n), n, rtol=1e-3, atol=0)
    assert torch.equal(_bounded_norm(torch.zeros(3, 3)), torch.zeros(3, 3))


def test_the_norm_of_each_matrix_of_a_stack_is_bounded_alone(generator: torch.Generator) -> None:
    stack = torch.stack([scale * nilpotent(5, generator) for scale in (0.0, 1e-3, 1.0, 1e20)])

    alone = torch.stack([_bounded_norm(n) for n in stack])

    torch.testing.assert_close(_bounded_norm(stack), alone)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.5, 3.0, 1e4])
def test_the_bound_is_smooth_at_every_scale_and_at_0(scale: float, generator: torch.Generator) -> None:
    n = (scale * nilpotent(4, generator).double()).requires_grad_()

    assert torch.autograd.gradcheck(_bounded_norm, n, eps=1e-6 * max(1, scale), atol=1e-8, rtol=1e-5)
    if scale == 0:
        jacobian = torch.autograd.functional.jacobian(_bounded_norm, n).reshape(16, 16)
        torch.testing.assert_close(jacobian, torch.eye(16, dtype=torch.float64))


# W


def test_the_bounds_are_those_that_the_documentation_states() -> None:
    assert ((1 + NORM_BOUND) / (1 - NORM_BOUND)) ** 2 * math.exp(2 * LOG_S_BOUND) == CONDITION_BOUND
    assert pytest.approx(2675, abs=1) == CONDITION_BOUND
    assert math.exp(2 * ACTNORM_BOUND) * CONDITION_BOUND == pytest.approx(8.84e5, rel=0.005)


def test_only_the_triangles_are_used_and_the_rotation_is_not_trained(generator: torch.Generator) -> None:
    conv = QLUConv1x1(5)
    before = conv.weight().detach().clone()
    with torch.no_grad():
        conv.lower += torch.randn(5, 5, generator=generator).triu()
        conv.upper += torch.randn(5, 5, generator=generator).tril()

    assert torch.equal(conv.weight(), before)
    assert set(dict(conv.named_parameters())) == {"lower", "upper", "unbounded_log_s"}


def test_w_is_the_product_of_its_factors(prepared: Prepare) -> None:
    conv = QLUConv1x1(6)
    prepared(conv)
    identity = torch.eye(6, dtype=torch.float64)

    lower = identity + _bounded_norm(conv.lower.tril(-1))
    upper = identity + _bounded_norm(conv.upper.triu(1))
    scale = torch.diag((2 * torch.tanh(conv.unbounded_log_s / 2)).exp())

    torch.testing.assert_close(conv.weight(), conv.rotation @ lower @ scale @ upper)


@pytest.mark.parametrize("channels", [1, 2, 12, 48])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e6, 1e30])
def test_no_parameters_take_the_condition_number_beyond_its_bound(
    size: float, channels: int, generator: torch.Generator
) -> None:
    conv = QLUConv1x1(channels)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
        parameter.detach().mul_(size)
    y = torch.randn(channels, 7, generator=generator)

    weight, log_abs_det = conv.weight().detach(), conv.log_abs_det().detach()

    assert conditions(weight[None])[0] < CONDITION_BOUND * ROUNDING
    torch.testing.assert_close(torch.linalg.slogdet(weight).logabsdet, log_abs_det, rtol=0, atol=1e-3)
    torch.testing.assert_close(weight @ conv.apply_inverse(y).detach(), y, rtol=0, atol=1e-2)


def test_the_first_step_turns_w_as_little_as_a_step_of_w_itself(generator: torch.Generator) -> None:
    # A step of Adam moves each parameter by the learning rate. The factors of an LU decomposition would magnify it.
    channels, rate = 192, 4e-3
    conv = QLUConv1x1(channels)
    before = conv.weight().detach().clone()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(rate * torch.randn(parameter.shape, generator=generator).sign())
    plain = rate * torch.randn(channels, channels, generator=generator).sign()

    moved = float(spectral_norms(conv.weight() - before))
    assert 0.5 < moved / float(spectral_norms(plain)) < 2


# Hostile training


def train_with_hostile_gradients(
    channels: int, n: int, rate: float, generator: torch.Generator
) -> list[float]:
    """Trains three steps of flow `n` times; returns the largest condition number that W had in each.

    The first maximizes the condition number of actnorm times W, the second the norms of its parameters, and the
    gradients of the third have random signs. Gradients stay finite, and both bounds are kept.
    """
    steps = [FlowStep(channels, GlowConfig(image_size=8, channels=3, width=1)) for _ in range(3)]
    parameters = [[*step.actnorm.parameters(), *step.conv1x1.parameters()] for step in steps]
    for parameter in parameters[1]:
        torch.nn.init.normal_(parameter, generator=generator)
    optimizer = torch.optim.Adam(itertools.chain(*parameters), lr=rate, maximize=True, fused=True)
    largest = [0.0] * 3
    for i in range(1, n + 1):
        optimizer.zero_grad()
        singular_values = torch.linalg.svdvals(linear_parts(steps[:1])[0][0])
        (singular_values[0].log() - singular_values[-1].log()).backward()
        for outward, arbitrary in zip(parameters[1], parameters[2], strict=True):
            outward.grad = outward.detach().clone()
            arbitrary.grad = torch.randn(arbitrary.shape, generator=generator).sign()
        if i % (n // 50) == 0:
            grads = [p.grad for p in itertools.chain(*parameters) if p.grad is not None]
            assert all(grad.isfinite().all() for grad in grads)
            alone, _ = steps[0].conv1x1.stacked([step.conv1x1 for step in steps])
            together, _, _ = linear_parts(steps)
            largest = list(map(max, largest, conditions(alone)))
            assert max(largest) < CONDITION_BOUND * ROUNDING
            assert max(conditions(together)) < CONDITION_BOUND * math.exp(2 * ACTNORM_BOUND) * 1.1
        optimizer.step()
    return largest


# Adam moves a parameter by up to n times the rate: by 1000 in the first case.
@pytest.mark.parametrize(("channels", "n", "rate"), [(12, 1000, 1.0), (48, 500, 0.1), (192, 100, 0.1)])
def test_no_gradient_takes_the_condition_number_beyond_its_bound(
    channels: int, n: int, rate: float, generator: torch.Generator
) -> None:
    condition, outward, arbitrary = train_with_hostile_gradients(channels, n, rate, generator)

    assert condition > 500  # the objective is hostile
    assert min(outward, arbitrary) > 3


def test_gradients_stay_finite_at_the_bound(generator: torch.Generator) -> None:
    conv = QLUConv1x1(12)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, std=1e6, generator=generator)
    x = torch.randn(4, 12, 2, 2, generator=generator)

    y, log_det = conv(x)
    (y.square().mean() - log_det.mean()).backward()

    assert all(p.grad is not None and np.isfinite(p.grad.numpy()).all() for p in conv.parameters())
