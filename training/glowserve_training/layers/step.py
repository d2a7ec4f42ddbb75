"""One step of flow (Kingma and Dhariwal 2018, figure 2a)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glowserve_training.config import GlowConfig
from glowserve_training.layers.actnorm import ActNorm
from glowserve_training.layers.base import Bijector
from glowserve_training.layers.conv1x1 import (
    InvertibleConv1x1,
    LUConv1x1,
    OrthogonalConv1x1,
    PlainConv1x1,
)
from glowserve_training.layers.coupling import Coupling
from glowserve_training.layers.masks import ChannelMask
from glowserve_training.layers.qlu import QLUConv1x1
from glowserve_training.layers.transforms import transform_of

CONV1X1_CLASSES: dict[str, type[QLUConv1x1 | LUConv1x1 | PlainConv1x1 | OrthogonalConv1x1]] = {
    "qlu": QLUConv1x1,
    "lu": LUConv1x1,
    "plain": PlainConv1x1,
    "orthogonal": OrthogonalConv1x1,
}
"""By `GlowConfig.parametrization`."""

ACTNORM_BOUND = 2.9
"""Of an actnorm's log-scale, with "qlu". The condition number of actnorm and 1x1 convolution together stays below
exp(2 * 2.9) * 2,675 = 884,000: an export refuses 1,000,000."""


class FlowStep(Bijector):
    """Actnorm, invertible 1x1 convolution, coupling.

    Args:
        channels: C at this level.
        config: the architecture.
    """

    def __init__(self, channels: int, config: GlowConfig) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels, ACTNORM_BOUND if config.parametrization == "qlu" else None)
        self.conv1x1: InvertibleConv1x1 = CONV1X1_CLASSES[config.parametrization](channels)
        mask = ChannelMask(channels)
        self.coupling = Coupling(
            mask,
            transform_of(config, mask.active_channels),
            config.width,
            actnorm=config.coupling_actnorm,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        self.actnorm.initialize(x)
        weights, biases, log_dets = linear_parts([self])
        x, log_det = self.transform(x, weights[0], biases[0])
        return x, log_det + x.shape[2] * x.shape[3] * log_dets.sum()

    def transform(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Applies the step; returns its output and the log-determinant of the coupling alone.

        The linear part is computed in float32 even under autocast, because it is inverted, and rounding would make the
        inverse differ. The coupling network is not inverted.

        Args:
            x: [N, C, H, W].
            weight: the step's weight from `linear_parts`, [C, C].
            bias: the step's bias from `linear_parts`, [C].
        """
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv2d(x, weight[:, :, None, None], bias)
        y, log_det = self.coupling(x)
        return y, log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        y, log_det_coupling = self.coupling.inverse(y)
        y, log_det_conv1x1 = self.conv1x1.inverse(y)
        y, log_det_actnorm = self.actnorm.inverse(y)
        return y, log_det_actnorm + log_det_conv1x1 + log_det_coupling


def linear_parts(steps: Sequence[FlowStep]) -> tuple[Tensor, Tensor, Tensor]:
    """Folds actnorm and 1x1 convolution of each of a level's K steps into one 1x1 convolution.

    Returns:
        Weights [K, C, C], biases [K, C], and log-determinants at one position, [K].
    """
    log_scale = torch.stack([step.actnorm.effective_log_scale() for step in steps]).flatten(1)
    bias = torch.stack([step.actnorm.bias for step in steps]).flatten(1)
    with torch.autocast(bias.device.type, enabled=False):
        weight, log_abs_det = steps[0].conv1x1.stacked([step.conv1x1 for step in steps])
        weight = weight * log_scale.exp()[:, None]
        return weight, (weight @ bias[:, :, None]).squeeze(2), log_scale.sum(1) + log_abs_det
