"""Variational dequantization (Ho et al. 2019, section 3.1), written as a bijector of the noise.

Uniform noise u becomes noise v = sigmoid(flow(logit(u))), where the flow is conditional on the image; v is more
probable where the model finds the image more likely. Then -log q(v) is the log-determinant of this map, which is added
to the log-likelihood like any other, and uniform noise remains the only random input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowserve_training.layers.coupling import CouplingNetwork
from glowserve_training.layers.squeeze import Squeeze

# Uniform noise can be 0, whose logit is infinite: noise is kept this far away from 0 and 1.
NOISE_MARGIN = 1e-6


class VariationalDequantization(nn.Module):
    """Logit, affine couplings, sigmoid; initialized as the identity. Couplings transform the two halves alternately.

    Args:
        channels: C of the image.
        width: hidden channels of the networks.
        couplings: number of couplings.
        actnorm: see `CouplingNetwork`.
    """

    def __init__(self, channels: int, width: int, couplings: int, *, actnorm: bool) -> None:
        super().__init__()
        self.squeeze = Squeeze()
        # Conditioned on the passive half of the noise (2C channels after the squeeze) and the image (4C).
        self.networks = nn.ModuleList(
            CouplingNetwork(6 * channels, 4 * channels, width, actnorm=actnorm) for _ in range(couplings)
        )

    def forward(self, noise: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform noise in [0, 1) to noise in [0, 1], and log|det| [N].

        Args:
            noise: [N, C, H, W].
            image: the bins' centers, in [-0.5, 0.5), [N, C, H, W].
        """
        # log u and log(1 - u) with the margin; computing 1 - noise first keeps the second exact near u = 1.
        log_u, log_one_minus_u = (
            (x * (1 - 2 * NOISE_MARGIN) + NOISE_MARGIN).log() for x in (noise, 1 - noise)
        )
        log_det = noise[0].numel() * math.log1p(-2 * NOISE_MARGIN) - (log_u + log_one_minus_u).sum((1, 2, 3))
        z, _ = self.squeeze(log_u - log_one_minus_u)
        context, _ = self.squeeze(image)
        for network in self.networks:
            passive, active = z.chunk(2, dim=1)
            h = network(torch.cat((passive, context), dim=1)).to(z.dtype)
            shift, logit = h.chunk(2, dim=1)
            transformed = (active + shift) * (2 * torch.sigmoid(logit))
            log_det = log_det + (F.logsigmoid(logit) + math.log(2)).sum((1, 2, 3))
            z = torch.cat((transformed, passive), dim=1)  # swaps the halves
        z, _ = self.squeeze.inverse(z)
        return torch.sigmoid(z), log_det + (F.logsigmoid(z) + F.logsigmoid(-z)).sum((1, 2, 3))
