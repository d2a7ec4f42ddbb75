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
    """The mixture of all classes, beside the standard normal density."""

    log_ratio: Tensor
    """log p(e) - log N(e; 0, 1), by level, [N, L]; see `mixture`."""

    log_posterior: Tensor
    """log p(c | e), [N, K]."""


class ClassPriors(nn.Module):
    """The densities.

    Args:
        classes: K.
        dimensions: D.
    """

    def __init__(self, classes: int, dimensions: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(classes, dimensions))
        self.log_scale = nn.Parameter(torch.zeros(classes, dimensions))
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
        with torch.autocast(self.mean.device.type, enabled=False):
            return log_ratios(latents, self.means(), self.log_scales())

    def place(self, latent: Tensor, classes: Tensor) -> Tensor:
        """Standard normal latents [N, D] as latents of classes, int64 [N]."""
        return self.means()[classes] + latent * self.log_scales()[classes].exp()


def log_ratios(latents: Sequence[Tensor], means: Tensor, log_scales: Tensor) -> Tensor:
    """Log N(e; m_c, s_c) - log N(e; 0, 1), [N, L, K].

    Args:
        latents: of each level, [N, D of the level].
        means: [K, D].
        log_scales: [K, D].
    """
    sizes = [latent.shape[1] for latent in latents]
    levels = []
    for latent, mean, log_scale in zip(
        latents, means.split(sizes, 1), log_scales.split(sizes, 1), strict=True
    ):
        precision = (-2 * log_scale).exp()
        squares = latent.square() @ (precision - 1).T
        constant = (0.5 * precision * mean.square() + log_scale).sum(1)
        levels.append(latent @ (precision * mean).T - 0.5 * squares - constant)
    return torch.stack(levels, dim=1)


def mixture(log_ratios: Tensor, log_share: Tensor) -> Mixture:
    """The mixture of all classes.

    By level the log-density is the mean over the posterior of each class's own. The top level has the rest: minus the
    divergence of the posterior from p(c), which is no level's own.

    Args:
        log_ratios: of `ClassPriors.log_ratios`, [N, L, K].
        log_share: log p(c), [K].
    """
    joint = log_ratios.sum(1) + log_share
    total = joint.logsumexp(1, keepdim=True)
    log_posterior = joint - total
    lower = (log_posterior.exp()[:, None] * log_ratios[:, :-1]).sum(2)
    return Mixture(torch.cat((lower, total - lower.sum(1, keepdim=True)), dim=1), log_posterior)
