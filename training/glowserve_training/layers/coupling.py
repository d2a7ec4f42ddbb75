"""Coupling layers (Dinh et al. 2014, 2017) with the network of Glow (section 3.3 and appendix B).

The first half of the channels passes unchanged and conditions an elementwise map of the second half.
"""

from __future__ import annotations

import abc
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowserve_training.layers.actnorm import ActNorm
from glowserve_training.layers.base import Bijector

# Multiplies ZeroConv2d's log-scale, which makes it learn that much faster than the weights.
LOG_SCALE_FACTOR = 3.0
# sigmoid(0 + 2) = 0.88: an affine coupling is initialized close to the identity.
SCALE_SHIFT = 2.0


class ZeroConv2d(nn.Module):
    """A zero-initialized 3x3 convolution whose output is multiplied by exp(3 * log_scale) in each channel.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one
        self.log_scale = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H, W]."""
        weight, bias = self.weight_and_bias()
        return F.conv2d(x, weight, bias, padding=1)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """With the scale folded in: [out_channels, in_channels, 3, 3] and [out_channels]."""
        scale = (LOG_SCALE_FACTOR * self.log_scale).exp()
        return self.conv.weight * scale[:, None], cast("Tensor", self.conv.bias) * scale.flatten()


class HiddenConv2d(nn.Module):
    """A convolution that keeps height and width, with a bias or, instead, an actnorm after it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: 1 or 3.
        actnorm: whether an actnorm replaces the bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, actnorm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not actnorm
        )
        nn.init.normal_(self.conv.weight, std=0.05)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.actnorm = ActNorm(out_channels) if actnorm else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H, W]."""
        if self.actnorm is None:
            y: Tensor = self.conv(x)
            return y
        if self.actnorm.needs_initialization:
            with torch.no_grad():
                self.actnorm.initialize(self.conv(x))
        weight, bias = self.weight_and_bias()
        return F.conv2d(x, weight, bias, padding=self.conv.padding)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Convolution and actnorm as one convolution: [out_channels, in_channels, k, k] and [out_channels]."""
        if self.actnorm is None:
            return self.conv.weight, cast("Tensor", self.conv.bias)
        scale = self.actnorm.log_scale.exp()
        return self.conv.weight * scale[:, None], (self.actnorm.bias * scale).flatten()


class CouplingNetwork(nn.Sequential):
    """3x3, ReLU, 1x1, ReLU, zero-initialized 3x3. A coupling never inverts its network, so it can be any map.

    Args:
        in_channels: channels of the conditioning input.
        out_channels: channels of the output.
        width: hidden channels.
        actnorm: whether the hidden convolutions have actnorms instead of biases.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, *, actnorm: bool = False) -> None:
        super().__init__(
            HiddenConv2d(in_channels, width, 3, actnorm=actnorm),
            nn.ReLU(inplace=True),
            HiddenConv2d(width, width, 1, actnorm=actnorm),
            nn.ReLU(inplace=True),
            ZeroConv2d(width, out_channels),
        )


class Coupling(Bijector):
    """The common base of both couplings.

    Args:
        channels: C, at least 2.
        width: hidden channels of the network.
        outputs: outputs of the network for each transformed channel.
        actnorm: see `CouplingNetwork`.
    """

    def __init__(self, channels: int, width: int, outputs: int, *, actnorm: bool = False) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(
                f"a coupling splits its channels in two; channels is {channels} and must be 2 or more"
            )
        self.passive = channels // 2
        self.active = channels - self.passive
        self.network = CouplingNetwork(self.passive, outputs * self.active, width, actnorm=actnorm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        passive, active = x.split((self.passive, self.active), dim=1)
        transformed, log_det = self.couple(active, self.network(passive).to(x.dtype))
        return torch.cat((passive, transformed), dim=1), log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        passive, transformed = y.split((self.passive, self.active), dim=1)
        active, log_det = self.uncouple(transformed, self.network(passive).to(y.dtype))
        return torch.cat((passive, active), dim=1), log_det

    @abc.abstractmethod
    def scale_range(self, h: Tensor) -> Tensor:
        """The smallest and the largest scale among those that the network's output h encodes, [2]."""

    @abc.abstractmethod
    def couple(self, active: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed half and the log-determinant [N], from the active half and the network's output."""

    @abc.abstractmethod
    def uncouple(self, transformed: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `couple`: the active half and the inverse's log-determinant [N]."""


class AdditiveCoupling(Coupling):
    """y2 = x2 + shift(x1): log-determinant 0.

    Args:
        channels: C, at least 2.
        width: hidden channels of the network.
        actnorm: see `CouplingNetwork`.
    """

    def __init__(self, channels: int, width: int, *, actnorm: bool = False) -> None:
        super().__init__(channels, width, outputs=1, actnorm=actnorm)

    def scale_range(self, h: Tensor) -> Tensor:
        """See `Coupling`; both are 1."""
        return h.new_ones(2)

    def couple(self, active: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        return active + h, active.new_zeros(active.shape[0])

    def uncouple(self, transformed: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        return transformed - h, transformed.new_zeros(transformed.shape[0])


class AffineCoupling(Coupling):
    """y2 = (x2 + shift(x1)) * sigmoid(scale(x1) + 2).

    Args:
        channels: C, at least 2.
        width: hidden channels of the network.
        actnorm: see `CouplingNetwork`.
    """

    def __init__(self, channels: int, width: int, *, actnorm: bool = False) -> None:
        super().__init__(channels, width, outputs=2, actnorm=actnorm)

    def scale_range(self, h: Tensor) -> Tensor:
        """See `Coupling`."""
        return torch.stack(self._shift_and_log_scale(h)[1].float().exp().aminmax())

    def couple(self, active: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        shift, log_scale = self._shift_and_log_scale(h)
        return (active + shift) * log_scale.exp(), log_scale.sum((1, 2, 3))

    def uncouple(self, transformed: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        shift, log_scale = self._shift_and_log_scale(h)
        return transformed * (-log_scale).exp() - shift, -log_scale.sum((1, 2, 3))

    @staticmethod
    def _shift_and_log_scale(h: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = h.chunk(2, dim=1)
        return shift, F.logsigmoid(raw + SCALE_SHIFT)


COUPLING_CLASSES: dict[str, type[AffineCoupling] | type[AdditiveCoupling]] = {
    "affine": AffineCoupling,
    "additive": AdditiveCoupling,
}
"""By `GlowConfig.coupling`."""
