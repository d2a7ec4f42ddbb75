"""The networks of couplings (Kingma and Dhariwal 2018, section 3.3 and appendix B)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowserve_training.layers.actnorm import ActNorm

# Multiplies ZeroConv2d's log-scale, which makes it learn that much faster than the weights.
LOG_SCALE_FACTOR = 3.0


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
