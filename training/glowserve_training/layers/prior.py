"""The learned priors, written as bijectors onto standard normal latents.

A Gaussian with mean m and log-scale l is a standard normal e under z = m + e * exp(l). Seen so, every prior is
one more affine layer, and the density of the whole flow is that of a standard normal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glowserve_training.layers.base import Bijector
from glowserve_training.layers.coupling import ZeroConv2d


class Split(Bijector):
    """Half of the channels becomes latent, given the other half, which goes on to the next level.

    The conditional prior (Kingma and Dhariwal 2018, appendix B): mean and log-scale of the latent half
    are a zero-initialized convolution of the half that goes on.

    Args:
        channels: C, even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = ZeroConv2d(channels // 2, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] to the same shape: what goes on in the first half, standard normal in the second."""
        onward, z = x.chunk(2, dim=1)
        mean, log_scale = self.network(onward).to(onward.dtype).chunk(2, dim=1)
        latent = (z - mean) * (-log_scale).exp()
        return torch.cat((onward, latent), dim=1), -log_scale.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` undoes."""
        onward, latent = y.chunk(2, dim=1)
        mean, log_scale = self.network(onward).to(onward.dtype).chunk(2, dim=1)
        z = mean + latent * log_scale.exp()
        return torch.cat((onward, z), dim=1), log_scale.sum((1, 2, 3))


class TopPrior(Bijector):
    """The prior of the top level: a mean and a log-scale for each channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] to standard normal latents of the same shape."""
        return (x - self.mean) * (-self.log_scale).exp(), -self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` undoes."""
        return self.mean + y * self.log_scale.exp(), self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.log_scale.sum()).expand(x.shape[0])
