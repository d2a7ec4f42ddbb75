"""The priors are Gaussian densities."""

from __future__ import annotations

import math

import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.layers import Level, Split, TopPrior
from glowserve_training.layers.prior import PRIOR_BOUND
from torch import Tensor

from tests.training.layers.conftest import Prepare


def standard_normal(latent: Tensor) -> Tensor:
    """The log-density of each image's latents under a standard normal, [N]."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(latent).sum((1, 2, 3))


def test_a_split_has_the_density_of_the_gaussian_predicted_by_the_first_half(
    prepared: Prepare, generator: torch.Generator
) -> None:
    split = Split(6)
    prepared(split)
    x = torch.randn(3, 6, 4, 4, generator=generator, dtype=torch.float64)
    first, z = x[:, :3], x[:, 3:]
    mean, log_scale = split.network(first).split(3, dim=1)

    y, log_det = split(x)

    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(z).sum((1, 2, 3))
    assert torch.equal(y[:, :3], first)
    torch.testing.assert_close(standard_normal(y[:, 3:]) + log_det, expected, rtol=0, atol=1e-9)


def test_the_top_prior_is_a_gaussian_for_each_channel(prepared: Prepare, generator: torch.Generator) -> None:
    prior = TopPrior(3)
    prepared(prior)
    z = torch.randn(3, 3, 2, 4, generator=generator, dtype=torch.float64)

    latent, log_det = prior(z)

    expected = torch.distributions.Normal(prior.mean, prior.log_scale.exp()).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(standard_normal(latent) + log_det, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prior", [Split(6, bound=2.0), TopPrior(6, bound=2.0)])
@pytest.mark.parametrize("value", [-1e30, 1e30])
def test_no_weight_moves_a_bounded_scale_beyond_its_bound(prior: Split | TopPrior, value: float) -> None:
    log_scale = prior.network.conv.bias if isinstance(prior, Split) else prior.log_scale
    with torch.no_grad():
        log_scale[-1] = value
        z, _ = prior.inverse(torch.ones(1, 6, 2, 2))

    assert float(z[0, -1, 0, 0]) == pytest.approx(math.exp(math.copysign(2, value)))


@pytest.mark.parametrize(("coupling_scale", "bound"), [("tanh", PRIOR_BOUND), ("sigmoid", None)])
@pytest.mark.parametrize("top", [False, True])
def test_the_priors_of_bounded_couplings_are_bounded(
    coupling_scale: str, bound: float | None, top: bool
) -> None:
    config = GlowConfig(image_size=8, channels=1, steps_per_level=1, width=6, coupling_scale=coupling_scale)

    assert Level(1, config, top=top).prior.bound == bound
