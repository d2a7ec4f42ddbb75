"""Actnorm is initialized by its first batch in training mode, once."""

from __future__ import annotations

import pytest
import torch
from glowserve_training.layers import ActNorm


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_first_batch_is_normalized_to_mean_0_and_variance_1(n: int, generator: torch.Generator) -> None:
    actnorm = ActNorm(3).double()
    x = 5 + 3 * torch.randn(n, 3, 4, 4, generator=generator, dtype=torch.float64)

    y, _ = actnorm(x)

    variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-9)


def test_only_the_first_batch_initializes_an_actnorm(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)
    actnorm(torch.randn(4, 3, 2, 2, generator=generator))
    before = [parameter.detach().clone() for parameter in actnorm.parameters()]

    actnorm(9 + torch.randn(4, 3, 2, 2, generator=generator))

    assert all(map(torch.equal, before, actnorm.parameters()))


def test_a_batch_of_one_initializes_an_actnorm_with_finite_values(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)

    y, log_det = actnorm(torch.randn(1, 3, 4, 4, generator=generator))
    (y.square().mean() - log_det.mean()).backward()

    assert y.isfinite().all()
    assert log_det.isfinite().all()
    assert actnorm.bias.grad is not None
    assert actnorm.bias.grad.isfinite().all()
    assert actnorm.log_scale.grad is not None
    assert actnorm.log_scale.grad.isfinite().all()


def test_a_constant_channel_keeps_scale_1(generator: torch.Generator) -> None:
    actnorm = ActNorm(2).double()
    x = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    x[:, 1] = 0.25

    y, log_det = actnorm(x)

    assert log_det.isfinite().all()
    torch.testing.assert_close(y[:, 1], torch.zeros_like(y[:, 1]), rtol=0, atol=1e-9)
    torch.testing.assert_close(y[:, 0].std(correction=0), torch.tensor(1.0).double(), rtol=0, atol=1e-9)


def test_after_a_constant_first_batch_other_batches_are_not_magnified(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)
    actnorm(torch.randn(1, 3, 1, 1, generator=generator))  # one position: every channel is constant

    y, _ = actnorm(torch.randn(1, 3, 1, 1, generator=generator))

    assert y.abs().max() < 10


def test_an_actnorm_is_not_initialized_in_evaluation_mode(generator: torch.Generator) -> None:
    actnorm = ActNorm(3).eval()
    x = 5 + torch.randn(4, 3, 2, 2, generator=generator)

    y, log_det = actnorm(x)

    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(4))
    assert not actnorm.initialized
    actnorm.train()(x)
    assert actnorm.initialized


def test_the_inverse_of_an_actnorm_does_not_initialize_it(generator: torch.Generator) -> None:
    actnorm = ActNorm(3)

    actnorm.inverse(torch.randn(4, 3, 2, 2, generator=generator))

    assert not actnorm.initialized


def test_a_loaded_actnorm_is_not_initialized_again(generator: torch.Generator) -> None:
    trained = ActNorm(3)
    trained(torch.randn(4, 3, 2, 2, generator=generator))
    assert "initialized" in trained.state_dict()

    loaded = ActNorm(3)
    loaded.load_state_dict(trained.state_dict())
    loaded(9 + torch.randn(4, 3, 2, 2, generator=generator))

    assert torch.equal(loaded.bias, trained.bias)
    assert torch.equal(loaded.log_scale, trained.log_scale)


def test_an_actnorm_that_was_saved_uninitialized_is_initialized_after_loading(
    generator: torch.Generator,
) -> None:
    used = ActNorm(3)
    used(torch.randn(4, 3, 2, 2, generator=generator))
    used.load_state_dict(ActNorm(3).state_dict())

    y, _ = used(5 + torch.randn(4, 3, 2, 2, generator=generator))

    assert used.initialized
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)


def test_a_bounded_actnorm_normalizes_a_batch_whose_scale_is_within_its_bound(
    generator: torch.Generator,
) -> None:
    actnorm = ActNorm(3, bound=3.0).double()
    x = 5 + torch.tensor([0.1, 1.0, 10.0]).reshape(3, 1, 1) * torch.randn(
        7, 3, 4, 4, generator=generator, dtype=torch.float64
    )

    y, log_det = actnorm(x)

    variance, mean = torch.var_mean(y.detach(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=1e-9)
    std = x.std((0, 2, 3), correction=0)
    torch.testing.assert_close(log_det.detach(), (-16 * std.log().sum()).expand(7))


@pytest.mark.parametrize("std", [1e-5, 1e5])
def test_a_bounded_actnorm_can_still_learn_after_a_batch_beyond_its_bound(
    std: float, generator: torch.Generator
) -> None:
    actnorm = ActNorm(2, bound=3.0)

    y, log_det = actnorm(std * torch.randn(7, 2, 4, 4, generator=generator))
    (y.square().mean() - log_det.mean()).backward()

    log_scale = actnorm.effective_log_scale().detach()
    torch.testing.assert_close(log_scale, torch.full_like(log_scale, -2.85 if std > 1 else 2.85))
    assert actnorm.log_scale.grad is not None
    assert actnorm.log_scale.grad.abs().min() > 0.01


@pytest.mark.parametrize("parameter", [-1e30, -10.0, 10.0, 1e30])
def test_no_parameter_takes_a_bounded_actnorm_beyond_its_bound(
    parameter: float, generator: torch.Generator
) -> None:
    actnorm = ActNorm(2, bound=3.0).eval()
    torch.nn.init.constant_(actnorm.log_scale, parameter)
    x = torch.randn(3, 2, 4, 4, generator=generator)

    with torch.no_grad():
        y, log_det = actnorm(x)
        back, _ = actnorm.inverse(y)
        log_scale = actnorm.effective_log_scale()

    assert float(log_scale.abs().max()) <= 3
    assert float(log_det.abs().max()) <= 3 * 2 * 16
    torch.testing.assert_close(back, x)
