"""Transforms of couplings: elementwise monotonic maps whose parameters a network predicts.

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
from glowserve_training.layers.splines import Spline

# sigmoid(0 + 2) = 0.88: the paper's coupling is initialized close to the identity.
SCALE_SHIFT = 2.0
# |log f| stays below this, so that f lies between 1/4 and 4, and the scale between 1/55 and 55.
LOG_F_BOUND = math.log(4)


class Transform(nn.Module, abc.ABC):
    """A monotonic map of each active value."""

    outputs: int
    """Outputs of the network for each active channel."""

    @abc.abstractmethod
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed values, and the log-derivative at each, [N, A, H, W]."""

    @abc.abstractmethod
    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The values before the transform, and the log-derivative of the inverse at each, [N, A, H, W]."""

    def log_scale_bound(self) -> float:
        """The largest |log-derivative| that any output of the network can lead to."""
        return math.inf


class Affine(Transform):
    """y = (x + shift) * exp(log_scale)."""

    outputs = 2

    @abc.abstractmethod
    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log_scale that the network's output h stands for, [N, A, H, W] each."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        shift, log_scale = self.shift_and_log_scale(h)
        return (x + shift) * log_scale.exp(), log_scale

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        shift, log_scale = self.shift_and_log_scale(h)
        return y * (-log_scale).exp() - shift, -log_scale


class Additive(Transform):
    """y = x + shift (Dinh et al. 2014)."""

    outputs = 1

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        return x + h, torch.zeros_like(h)

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        return y - h, torch.zeros_like(h)

    def log_scale_bound(self) -> float:
        """See `Transform`."""
        return 0.0


class SigmoidAffine(Affine):
    """The paper's scale, sigmoid(h + 2). It cannot grow beyond 1 and may come near 0, where its inverse explodes."""

    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Affine`."""
        shift, raw = h.chunk(2, dim=1)
        return shift, F.logsigmoid(raw + SCALE_SHIFT)


class DoubleSigmoid(Affine):
    """The scale 2 sigmoid(h) of variational dequantization in version 0.1.0; initialized as the identity."""

    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Affine`."""
        shift, raw = h.chunk(2, dim=1)
        return shift, F.logsigmoid(raw) + math.log(2)


class TanhAffine(Affine):
    """The scale exp(f tanh(h / f)) with one learned f for each channel: bounded both ways, initialized as the identity.

    Args:
        channels: A.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unbounded_log_f = nn.Parameter(torch.zeros(channels, 1, 1))

    def bound(self) -> Tensor:
        """The bound f of |log_scale|: 1 at initialization, always between 1/4 and 4, [A, 1, 1]."""
        return bounded(self.unbounded_log_f, LOG_F_BOUND).exp()

    def shift_and_log_scale(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Affine`."""
        shift, raw = h.chunk(2, dim=1)
        f = self.bound()
        return shift, f * torch.tanh(raw / f)

    def log_scale_bound(self) -> float:
        """See `Transform`."""
        return float(self.bound().detach().max())


class AffineSpline(Transform):
    """An affine map, and after it a spline: see `Spline`.

    Args:
        affine: the affine map.
        bins: of the spline.
        interval: of the spline.
    """

    def __init__(self, affine: Affine, bins: int, interval: float) -> None:
        super().__init__()
        self.affine, self.spline = affine, Spline(bins, interval)
        self.outputs = self.affine.outputs + self.spline.outputs

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        of_affine, of_spline = self._parts(h)
        y, log_scale = self.affine(x, of_affine)
        y, log_slope = self.spline(y, of_spline)
        return y, log_scale + log_slope

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        of_affine, of_spline = self._parts(h)
        x, log_slope = self.spline.inverse(y, of_spline)
        x, log_scale = self.affine.inverse(x, of_affine)
        return x, log_scale + log_slope

    def log_scale_bound(self) -> float:
        """See `Transform`."""
        return self.affine.log_scale_bound() + max(abs(math.log(slope)) for slope in self.spline.slopes())

    def _parts(self, h: Tensor) -> tuple[Tensor, Tensor]:
        channels = h.shape[1] // self.outputs
        of_affine, of_spline = h.split(
            [channels * part.outputs for part in (self.affine, self.spline)], dim=1
        )
        return of_affine, of_spline


def transform_of(config: GlowConfig, channels: int) -> Transform:
    """The transform of a flow's couplings.

    Args:
        config: the architecture.
        channels: A, the active channels.
    """
    if config.coupling == "additive":
        return Additive()
    affine = TanhAffine(channels) if config.coupling_scale == "tanh" else SigmoidAffine()
    if config.coupling == "spline":
        return AffineSpline(affine, config.spline_bins, config.spline_interval)
    return affine


def dequantization_transform_of(config: GlowConfig, channels: int) -> Transform:
    """The transform of the couplings of variational dequantization, which scale even if the flow's are additive."""
    return TanhAffine(channels) if config.coupling_scale == "tanh" else DoubleSigmoid()
