"""Transforms of couplings: elementwise maps whose shift and scale a network predicts.

Shapes: A active channels; the network's output h is [N, A * outputs, H, W], shifts first.
"""

from __future__ import annotations

import abc
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowserve_training.config import GlowConfig
from glowserve_training.layers.bounds import bounded

# sigmoid(0 + 2) = 0.88: the paper's coupling is initialized close to the identity.
SCALE_SHIFT = 2.0
# |log f| stays below this, so that f lies between 1/4 and 4, and the scale between 1/55 and 55.
LOG_F_BOUND = math.log(4)


class Transform(nn.Module, abc.ABC):
    """y = (x + shift) * exp(log_scale)."""

    outputs: int
    """Outputs of the network for each active channel."""

    @abc.abstractmethod
    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log_scale that the network's output h stands for, [N, A, H, W] each."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed values, and the log-derivative at each, [N, A, H, W]."""
        shift, log_scale = self.shift_and_log_scale(h)
        return (x + shift) * log_scale.exp(), log_scale

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The values before the transform, and the log-derivative of the inverse at each, [N, A, H, W]."""
        shift, log_scale = self.shift_and_log_scale(h)
        return y * (-log_scale).exp() - shift, -log_scale


class Additive(Transform):
    """y = x + shift (Dinh et al. 2014)."""

    outputs = 1

    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        return h, torch.zeros_like(h)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        return x + h, torch.zeros_like(h)

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        return y - h, torch.zeros_like(h)


class SigmoidAffine(Transform):
    """The paper's scale, sigmoid(h + 2). It cannot grow beyond 1 and may come near 0, where its inverse explodes."""

    outputs = 2

    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        shift, raw = h.chunk(2, dim=1)
        return shift, F.logsigmoid(raw + SCALE_SHIFT)


class DoubleSigmoid(Transform):
    """The scale 2 sigmoid(h) of variational dequantization in version 0.1.0; initialized as the identity."""

    outputs = 2

    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        shift, raw = h.chunk(2, dim=1)
        return shift, F.logsigmoid(raw) + math.log(2)


class TanhAffine(Transform):
    """The scale exp(f tanh(h / f)) with one learned f for each channel: bounded both ways, initialized as the identity.

    Args:
        channels: A.
    """

    outputs = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unbounded_log_f = nn.Parameter(torch.zeros(channels, 1, 1))

    def bound(self) -> Tensor:
        """The bound f of |log_scale|: 1 at initialization, always between 1/4 and 4, [A, 1, 1]."""
        return bounded(self.unbounded_log_f, LOG_F_BOUND).exp()

    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        shift, raw = h.chunk(2, dim=1)
        f = self.bound()
        return shift, f * torch.tanh(raw / f)


def transform_of(config: GlowConfig, channels: int) -> Transform:
    """The transform of a flow's couplings.

    Args:
        config: the architecture.
        channels: A, the active channels.
    """
    if config.coupling == "additive":
        return Additive()
    return TanhAffine(channels) if config.coupling_scale == "tanh" else SigmoidAffine()


def dequantization_transform_of(config: GlowConfig, channels: int) -> Transform:
    """The transform of the couplings of variational dequantization, which scale even if the flow's are additive."""
    return TanhAffine(channels) if config.coupling_scale == "tanh" else DoubleSigmoid()
