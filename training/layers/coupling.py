"""Coupling layers (Dinh et al. 2014, 2017) with the network of Glow (section 3.3 and appendix B).

The first half of the channels passes and steers what happens to the second half.
"""

from __future__ import annotations

import abc

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.layers.base import Bijector

# The factor on ZeroConv2d's log-scale: it learns that much faster than the weights.
LOG_SCALE_FACTOR = 3.0
# sigmoid(0 + this) = 0.88: at the start an affine coupling is nearly, but not exactly, the identity.
SCALE_SHIFT = 2.0


class ZeroConv2d(nn.Module):
    """A 3x3 convolution that begins as zero, its output times exp(3 * log_scale) for each channel.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one
        self.log_scale = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, H, W]."""
        y: Tensor = self.conv(x)
        return y * (LOG_SCALE_FACTOR * self.log_scale).exp()


class CouplingNetwork(nn.Sequential):
    """3x3, ReLU, 1x1, ReLU, zero-initialized 3x3: any map would do, for a coupling never inverts it.

    Args:
        in_channels: channels that steer.
        out_channels: numbers that they yield at each place.
        width: hidden channels.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        first = nn.Conv2d(in_channels, width, 3, padding=1)
        second = nn.Conv2d(width, width, 1)
        for conv in (first, second):
            nn.init.normal_(conv.weight, std=0.05)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), ZeroConv2d(width, out_channels))


class Coupling(Bijector):
    """The frame of both couplings.

    Args:
        channels: C, at least 2.
        width: hidden channels of the network.
        outputs: numbers that the network yields for each channel that it changes.
    """

    def __init__(self, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"a coupling splits its channels in two and got {channels}; give it 2 or more")
        self.passive = channels // 2
        self.active = channels - self.passive
        self.network = CouplingNetwork(self.passive, outputs * self.active, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        passive, active = x.split((self.passive, self.active), dim=1)
        changed, log_det = self.couple(active, self.network(passive))
        return torch.cat((passive, changed), dim=1), log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        passive, changed = y.split((self.passive, self.active), dim=1)
        active, log_det = self.uncouple(changed, self.network(passive))
        return torch.cat((passive, active), dim=1), log_det

    @abc.abstractmethod
    def couple(self, active: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The changed half and its log-determinant [N], from the active half and the network's output."""

    @abc.abstractmethod
    def uncouple(self, changed: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """What `couple` undoes."""


class AdditiveCoupling(Coupling):
    """y2 = x2 + shift(x1): log-determinant 0.

    Args:
        channels: C, at least 2.
        width: hidden channels of the network.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, outputs=1)

    def couple(self, active: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        return active + h, active.new_zeros(active.shape[0])

    def uncouple(self, changed: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        return changed - h, changed.new_zeros(changed.shape[0])


class AffineCoupling(Coupling):
    """y2 = (x2 + shift(x1)) * sigmoid(scale(x1) + 2).

    Args:
        channels: C, at least 2.
        width: hidden channels of the network.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, outputs=2)

    def couple(self, active: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        shift, log_scale = self._shift_and_log_scale(h)
        return (active + shift) * log_scale.exp(), log_scale.sum((1, 2, 3))

    def uncouple(self, changed: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coupling`."""
        shift, log_scale = self._shift_and_log_scale(h)
        return changed * (-log_scale).exp() - shift, -log_scale.sum((1, 2, 3))

    @staticmethod
    def _shift_and_log_scale(h: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = h.chunk(2, dim=1)
        return shift, F.logsigmoid(raw + SCALE_SHIFT)


COUPLINGS: dict[str, type[AffineCoupling] | type[AdditiveCoupling]] = {
    "affine": AffineCoupling,
    "additive": AdditiveCoupling,
}
