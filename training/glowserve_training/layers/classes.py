"""Gaussian densities of the latents, one for each class, in place of the standard normal density.

A flow whose latents e are standard normal is the same for every class; log p(x | c) is log N(e; m_c, s_c) plus the
log-determinants. Where m_c = 0 and log s_c = 0, which is how training begins, the class makes no difference. The sum
over classes is a mixture of Gaussians in the latents (Izmailov et al. 2020, "Semi-supervised learning with normalizing
flows", section 3), and its responsibilities are the posterior probabilities of the classes.

Shapes: N images, K classes, L levels, D latents of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from glowserve_training.layers.bounds import bounded
from glowserve_training.layers.prior import PRIOR_BOUND

# Means are this many times their parameters: Adam moves a parameter by the learning rate in a step at most, and classes
# lie about a standard deviation apart.
MEAN_FACTOR = 3.0


class Mixture(NamedTuple):
    """What classes make of the log-densities of latents that are taken for standard normal."""

    log_ratio: Tensor
    """log p(e) - log N(e; 0, 1), by level, [N, L]: see `mixture`."""

    log_posterior: Tensor
    """log p(c | e), [N, K]."""


class ClassPriors(nn.Module):
    """The densities.

    Args:
        classes: K.
        sizes: the latents of each level, level 1 first; D in all.
    """

    def __init__(self, classes: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.mean = nn.Parameter(torch.zeros(classes, sum(sizes)))
        self.log_scale = nn.Parameter(torch.zeros(classes, sum(sizes)))
        self.log_share: Tensor
        """log p(c), [K]: of the training images; set before training."""
        self.register_buffer("log_share", torch.full((classes,), 1 / classes).log())

    def set_shares(self, labels: Tensor) -> None:
        """Sets p(c) to the share of each class in labels, int64 [N], as if each had one image more."""
        counts = torch.bincount(labels, minlength=len(self.mean)) + 1
        self.log_share.copy_((counts / counts.sum()).log())

    def means(self) -> Tensor:
        """[K, D]."""
        return MEAN_FACTOR * self.mean

    def log_scales(self) -> Tensor:
        """[K, D]."""
        return bounded(self.log_scale, PRIOR_BOUND)

    def log_ratios(self, latents: Sequence[Tensor]) -> Tensor:
        """Log N(e; m_c, s_c) - log N(e; 0, 1) of each level's latents, [N, D of the level], as [N, L, K].

        It is computed in the latents' precision even under autocast: squares cancel out.
        """
        means, log_scales = (values.split(self.sizes, dim=1) for values in (self.means(), self.log_scales()))
        with torch.autocast(self.mean.device.type, enabled=False):
            levels = [_log_ratio(*level) for level in zip(latents, means, log_scales, strict=True)]
        return torch.stack(levels, dim=1)

    def place(self, latent: Tensor, classes: Tensor) -> Tensor:
        """Standard normal latents [N, D] as latents of classes, int64 [N]."""
        return self.means()[classes] + latent * self.log_scales()[classes].exp()


def _log_ratio(latent: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Of one level: [N, D], [K, D], [K, D] -> [N, K]."""
    precision = (-2 * log_scale).exp()
    squares = latent.square() @ (precision - 1).T
    constant = (0.5 * precision * mean.square() + log_scale).sum(1)
    return latent @ (precision * mean).T - 0.5 * squares - constant


def mixture(log_ratios: Tensor, log_share: Tensor) -> Mixture:
    """The mixture of all classes.

    By level the log-density is the mean over the posterior of each class's own; the top level has the rest, which is
    minus the divergence of the posterior from p(c). So each term of a class lies at its own level.

    Args:
        log_ratios: [N, L, K].
        log_share: log p(c), [K].
    """
    log_posterior = (log_ratios.sum(1) + log_share).log_softmax(1)
    posterior = log_posterior.exp()
    by_level = (posterior[:, None] * log_ratios).sum(2)
    rest = (posterior * (log_share - log_posterior)).sum(1)
    return Mixture(torch.cat((by_level[:, :-1], by_level[:, -1:] + rest[:, None]), dim=1), log_posterior)
