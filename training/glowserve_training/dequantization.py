"""Variational dequantization (Ho et al. 2019, section 3.1), written as a bijector of the noise.

Uniform noise u becomes noise v that is likely where the model finds the image likely: v = sigmoid(flow(logit(u))), the
flow conditional on the image. Seen so, log q(v) is minus the log-determinant of this map, which is added to the
log-likelihood like any other; and uniform noise remains all the randomness that there is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowserve_training.layers.coupling import CouplingNetwork
from glowserve_training.layers.squeeze import Squeeze

# Uniform noise may be 0, whose logit is not finite: the noise is drawn in by this at either end.
NOISE_MARGIN = 1e-6


class VariationalDequantization(nn.Module):
    """Affine couplings between logit and sigmoid, each with both halves of the channels in turn; the identity at first.

    Args:
        channels: C of the image.
        width: hidden channels of the networks.
        couplings: how many.
        actnorm: see `CouplingNetwork`.
    """

    def __init__(self, channels: int, width: int, couplings: int, *, actnorm: bool) -> None:
        super().__init__()
        self.squeeze = Squeeze()
        # What steers is the passive half of the noise, and the image; 2C and 4C channels after the squeeze.
        self.networks = nn.ModuleList(
            CouplingNetwork(6 * channels, 4 * channels, width, actnorm=actnorm) for _ in range(couplings)
        )

    def forward(self, noise: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform noise in [0, 1) to noise in [0, 1], and log|det| [N].

        Args:
            noise: [N, C, H, W].
            image: the middles of the bins, in [-0.5, 0.5), [N, C, H, W].
        """
        # Drawn in, u and 1 - u; near 1, the latter from 1 - noise, which is exact.
        log_u, log_rest = ((x * (1 - 2 * NOISE_MARGIN) + NOISE_MARGIN).log() for x in (noise, 1 - noise))
        log_det = noise[0].numel() * math.log1p(-2 * NOISE_MARGIN) - (log_u + log_rest).sum((1, 2, 3))
        z, _ = self.squeeze(log_u - log_rest)
        context, _ = self.squeeze(image)
        for network in self.networks:
            passive, active = z.chunk(2, dim=1)
            h = network(torch.cat((passive, context), dim=1)).to(z.dtype)
            shift, logit = h.chunk(2, dim=1)
            changed = (active + shift) * (2 * torch.sigmoid(logit))
            log_det = log_det + (F.logsigmoid(logit) + math.log(2)).sum((1, 2, 3))
            z = torch.cat((changed, passive), dim=1)  # the halves change places
        z, _ = self.squeeze.inverse(z)
        return torch.sigmoid(z), log_det + (F.logsigmoid(z) + F.logsigmoid(-z)).sum((1, 2, 3))
