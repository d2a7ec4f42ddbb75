"""Masks of couplings: which values condition, and which are transformed (Dinh et al. 2017, figure 3)."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn


class Mask(nn.Module, abc.ABC):
    """Splits the values of x [N, C, H, W] into passive ones, which condition, and active ones, which are transformed.

    The passive values, the active ones and the transformed ones may contain others that do not count.
    """

    passive_channels: int
    """Channels of the passive values."""

    active_channels: int
    """Channels of the active values."""

    @abc.abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Passive and active values of x."""

    @abc.abstractmethod
    def join(self, x: Tensor, transformed: Tensor) -> Tensor:
        """X with its active values replaced."""

    @abc.abstractmethod
    def sum(self, active: Tensor) -> Tensor:
        """The sum of the active values of each image, [N]."""


class ChannelMask(Mask):
    """Half of the channels conditions the other half.

    Args:
        channels: C, at least 2.
        transforms_first: whether the first half is active; else the second half is, which has one more if C is odd.
    """

    def __init__(self, channels: int, *, transforms_first: bool = False) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(
                f"a coupling splits its channels in two; channels is {channels} and must be 2 or more"
            )
        self.transforms_first = transforms_first
        self._sizes = (channels // 2, channels - channels // 2)
        self.passive_channels, self.active_channels = self._sizes[::-1] if transforms_first else self._sizes

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mask`."""
        first, second = x.split(self._sizes, dim=1)
        return (second, first) if self.transforms_first else (first, second)

    def join(self, x: Tensor, transformed: Tensor) -> Tensor:
        """See `Mask`."""
        passive, _ = self.split(x)
        return torch.cat((transformed, passive) if self.transforms_first else (passive, transformed), dim=1)

    def sum(self, active: Tensor) -> Tensor:
        """See `Mask`."""
        return active.sum((1, 2, 3))


class CheckerboardMask(Mask):
    """Every second pixel conditions the others, as on a checkerboard. The passive values have zeros between them.

    Args:
        channels: C.
        parity: a pixel is passive if row + column is even (0) or odd (1).
    """

    def __init__(self, channels: int, *, parity: int) -> None:
        super().__init__()
        self.parity = parity
        self.passive_channels = self.active_channels = channels

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mask`."""
        return x * self._passive(x), x

    def join(self, x: Tensor, transformed: Tensor) -> Tensor:
        """See `Mask`."""
        return torch.where(self._passive(x), x, transformed)

    def sum(self, active: Tensor) -> Tensor:
        """See `Mask`."""
        return (active * ~self._passive(active)).sum((1, 2, 3))

    def _passive(self, x: Tensor) -> Tensor:
        """Whether a pixel is passive, [H, W]."""
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape[2:])
        return (rows[:, None] + columns) % 2 == self.parity
