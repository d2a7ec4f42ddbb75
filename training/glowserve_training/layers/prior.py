"""The learned priors, written as bijectors to standard normal latents.

z = m + e * exp(l) with standard normal e is Gaussian with mean m and log-scale l. So every prior is one more affine
layer, and the prior of the whole flow is a standard normal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glowserve_training.layers.base import Bijector
from glowserve_training.layers.bounds import bounded
from glowserve_training.layers.networks import ZeroConv2d

# The log-scale of a bounded prior lies between -6 and 6, and its scale between 1/403 and 403. That is wide enough: in a
# flat area of an 8-bit image only the noise within the bins varies, by 1/256 of the range of all values.
PRIOR_BOUND = 6.0


class Split(Bijector):
    """Makes the second half of the channels latent, with a prior conditional on the first half.

    Kingma and Dhariwal (2018), appendix B: a zero-initialized convolution of the first half predicts mean and
    log-scale of the second. The first half continues to the next level.

    Args:
        channels: C, even.
        bound: B, below which the log-scale stays: it is B tanh(l / B) of the prediction l; None for no bound.
    """

    def __init__(self, channels: int, bound: float | None = None) -> None:
        super().__init__()
        self.bound = bound
        self.network = ZeroConv2d(channels // 2, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] to the same shape: the first half unchanged, the second half standard normal."""
        continuing, z = x.chunk(2, dim=1)
        mean, log_scale = self._mean_and_log_scale(continuing)
        latent = (z - mean) * (-log_scale).exp()
        return torch.cat((continuing, latent), dim=1), -log_scale.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        continuing, latent = y.chunk(2, dim=1)
        mean, log_scale = self._mean_and_log_scale(continuing)
        z = mean + latent * log_scale.exp()
        return torch.cat((continuing, z), dim=1), log_scale.sum((1, 2, 3))

    def _mean_and_log_scale(self, continuing: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.network(continuing).to(continuing.dtype).chunk(2, dim=1)
        return mean, bounded(log_scale, self.bound)


class TopPrior(Bijector):
    """The prior of the top level: one mean and one log-scale for each channel.

    Args:
        channels: C.
        bound: see `Split`.
    """

    def __init__(self, channels: int, bound: float | None = None) -> None:
        super().__init__()
        self.bound = bound
        self.mean = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] to standard normal latents of the same shape."""
        return (x - self.mean) * (-self.effective_log_scale()).exp(), -self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        return self.mean + y * self.effective_log_scale().exp(), self._log_det(y)

    def effective_log_scale(self) -> Tensor:
        """The log-scale that is applied, [C, 1, 1]."""
        return bounded(self.log_scale, self.bound)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.effective_log_scale().sum()).expand(x.shape[0])
