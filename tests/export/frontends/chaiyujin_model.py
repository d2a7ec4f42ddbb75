"""chaiyujin/glow-pytorch with random weights, rewritten; see public_model.py.

y0ast/Glow-PyTorch descends from it: the arithmetic is the same, the keys and the scale of images are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.export.frontends.public_model import random_lu
from tests.export.frontends.y0ast_model import Y0astActNorm, Y0astGlow, Y0astStep


class ChaiyujinGlow(Y0astGlow):
    """Its arguments are those of `Y0astGlow` but for n_bits."""

    kind = "chaiyujin"
    top_name = "learn_top"
    centre = 0.0

    def greys(self, n_bits: int) -> float:
        """The images are divided by 255."""
        return 255.0

    def step(self, *arguments: Any, lu: bool) -> nn.Module:
        return ChaiyujinStep(*arguments, lu=lu)

    def scaled_conv(self, inputs: int, outputs: int) -> nn.Module:
        return Conv2dZeros(inputs, outputs)


class ChaiyujinStep(Y0astStep):
    block_name = "f"

    def lu(self, channels: int) -> nn.Module:
        return ChaiyujinLU(channels)

    def convs(self, inputs: int, hidden: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        return NormedConv2d(inputs, hidden, 3), NormedConv2d(hidden, hidden, 1), Conv2dZeros(hidden, outputs)


class ChaiyujinLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        p, lower, upper, log_s, sign = random_lu(channels)
        self.l, self.log_s, self.u = nn.Parameter(lower), nn.Parameter(log_s), nn.Parameter(upper)
        self.register_buffer("p", p)
        self.register_buffer("sign_s", sign)

    def matrix(self) -> Tensor:
        below = torch.ones_like(self.l).tril(-1)
        lower = self.l * below + torch.eye(len(below), dtype=below.dtype)
        return self.p @ lower @ (self.u * below.T + (self.sign_s * self.log_s.exp()).diag())


class NormedConv2d(nn.Conv2d):
    """A convolution without bias that owns the actnorm after it."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.actnorm = Y0astActNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.actnorm(super().forward(x))
        return y


class Conv2dZeros(nn.Conv2d):
    """3x3, padded with zeros, times exp(3 logs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.logs = nn.Parameter(0.1 * torch.randn(outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (3 * self.logs).exp()
