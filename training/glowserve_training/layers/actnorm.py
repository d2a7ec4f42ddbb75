"""Activation normalization (Kingma and Dhariwal 2018, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glowserve_training.layers.base import Bijector
from glowserve_training.layers.bounds import bounded, unbounded

# A channel with a smaller standard deviation counts as constant and keeps scale 1: a scale that made its variance 1
# would magnify any change in the next batch beyond measure.
_SMALLEST_STD = 1e-6
# An initial log-scale keeps this share of its bound, beyond which it would hardly learn any more.
_SHARE_OF_BOUND = 0.95


class ActNorm(Bijector):
    """y = (x + bias) * exp(log_scale), with one bias and one scale for each channel.

    The first batch in training mode initializes both, so that each channel of y has mean 0 and variance 1; from then
    on they are ordinary parameters. Distributed processes use the statistics of all their batches together, and
    initialize alike.

    Args:
        channels: C.
        bound: B, below which the log-scale stays: it is B tanh(l / B) of the parameter l; None for no bound.
    """

    initialized: Tensor

    def __init__(self, channels: int, bound: float | None = None) -> None:
        super().__init__()
        self._bound = bound
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(False))
        # The same on the host: reading the buffer would make the host wait for the device at every step.
        self._initialized = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`; initializes bias and scale on the first call in training mode."""
        self.initialize(x)
        return (x + self.bias) * self.effective_log_scale().exp(), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        return y * (-self.effective_log_scale()).exp() - self.bias, -self._log_det(y)

    def effective_log_scale(self) -> Tensor:
        """The log-scale that is applied, [C, 1, 1]."""
        return bounded(self.log_scale, self._bound)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.effective_log_scale().sum()).expand(x.shape[0])

    @property
    def needs_initialization(self) -> bool:
        """Whether the next batch will set bias and scale: in training mode, and none has before."""
        return self.training and not self._initialized

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets bias and scale from x [N, C, H, W] if `needs_initialization`; else does nothing."""
        if not self.needs_initialization:
            return
        # Over batch and space together, and without Bessel's correction, so that a batch of one image works.
        mean = _mean_over_processes(x.mean((0, 2, 3), keepdim=True))
        variance = _mean_over_processes((x - mean).square().mean((0, 2, 3), keepdim=True))
        std = variance.sqrt()
        std = torch.where(std < _SMALLEST_STD, 1.0, std)
        self.bias.copy_(-mean[0])
        log_scale = -std.log()[0]
        if self._bound is not None:
            most = _SHARE_OF_BOUND * self._bound
            log_scale = unbounded(log_scale.clamp(-most, most), self._bound)
        self.log_scale.copy_(log_scale)
        self.initialized.fill_(True)
        self._initialized = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._initialized = bool(self.initialized)


def _mean_over_processes(x: Tensor) -> Tensor:
    """The mean of x over all distributed processes, whose batches have equal size."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x
