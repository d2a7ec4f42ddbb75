"""Activation normalization (Kingma and Dhariwal 2018, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glowserve_training.layers.base import Bijector

# A channel with a standard deviation below this is constant, and keeps scale 1: whatever comes with the next
# batch, a scale that made its variance 1 would blow it up.
_SMALLEST_STD = 1e-6


class ActNorm(Bijector):
    """y = (x + bias) * exp(log_scale), a bias and a scale for each channel.

    The first batch that is seen in training mode sets both, so that it comes out with mean 0 and
    variance 1 in each channel; from then on they are ordinary parameters. Processes that train together look at
    all their batches, and set the same.

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
        self.see(x)
        return (x + self.bias) * self.log_scale.exp(), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        return y * (-self.log_scale).exp() - self.bias, -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.log_scale.sum()).expand(x.shape[0])

    @property
    def waits(self) -> bool:
        """Whether the next batch will set bias and scale."""
        return self._needs_data and self.training

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Sets bias and scale, if x [N, C, H, W] is the first batch that is seen in training mode."""
        if not self.waits:
            return
        # Over batch and space together, without Bessel's correction: right for a batch of one, too.
        mean = _mean_over_processes(x.mean((0, 2, 3), keepdim=True))
        variance = _mean_over_processes((x - mean).square().mean((0, 2, 3), keepdim=True))
        std = variance.sqrt()
        std = torch.where(std < _SMALLEST_STD, 1.0, std)
        self.bias.copy_(-mean[0])
        self.log_scale.copy_(-std.log()[0])
        self.initialized.fill_(True)
        self._needs_data = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._needs_data = not bool(self.initialized)


def _mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a figure of batches that are equally large."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x
