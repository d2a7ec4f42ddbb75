"""Activation normalization (Kingma and Dhariwal 2018, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.layers.base import Bijector

# A channel with a standard deviation below this is constant, and keeps scale 1: whatever comes with the next
# batch, a scale that made its variance 1 would blow it up.
_SMALLEST_STD = 1e-6


class ActNorm(Bijector):
    """y = (x + bias) * exp(log_scale), a bias and a scale for each channel.

    The first batch that is seen in training mode sets both, so that it comes out with mean 0 and
    variance 1 in each channel; from then on they are ordinary parameters.

    Args:
        channels: C.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(False))
        # The same fact on the host: asking the buffer would stall an accelerator at every step.
        self._needs_data = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`; sets bias and scale on the first call in training mode."""
        if self._needs_data and self.training:
            self._initialize(x)
        return (x + self.bias) * self.log_scale.exp(), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        return y * (-self.log_scale).exp() - self.bias, -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.log_scale.sum()).expand(x.shape[0])

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        # Over batch and space together, without Bessel's correction: right for a batch of one, too.
        std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
        self.bias.copy_(-mean.view_as(self.bias))
        std = torch.where(std < _SMALLEST_STD, 1.0, std)
        self.log_scale.copy_(-std.log().view_as(self.log_scale))
        self.initialized.fill_(True)
        self._needs_data = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._needs_data = not bool(self.initialized)
