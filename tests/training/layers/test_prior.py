"""The priors are Gaussian densities."""

from __future__ import annotations

import torch
from glowserve_training.layers import Split, TopPrior
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
