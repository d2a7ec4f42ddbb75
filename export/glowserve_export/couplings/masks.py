"""Masks of couplings: which values are passive and condition, and which are active and transformed.

Shapes: [N, C, H, W] inside the flow. Passive and active values may contain others that do not count.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import numpy.typing as npt
import torch
from glowserve_training.layers import masks as trained
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder
from glowserve_export.errors import no_folded_form


class Mask(abc.ABC):
    """Splits the values of a coupling's input in two."""

    @property
    @abc.abstractmethod
    def positions(self) -> Hashable:
        """Equal for masks whose active values lie at the same positions of their channels."""

    @abc.abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The passive and the active values."""

    @abc.abstractmethod
    def join(self, passive: Tensor, active: Tensor) -> Tensor:
        """The inverse of `split`."""

    @abc.abstractmethod
    def active_channels(self, active: int) -> npt.NDArray[np.intp]:
        """The channels of the input that the active values lie in, [active], of which there are so many."""

    @abc.abstractmethod
    def add_split(self, g: GraphBuilder, x: str, channels: int, name: str) -> tuple[str, str]:
        """The nodes of `split`, for that many active channels."""

    @abc.abstractmethod
    def passive_name(self, name: str) -> str:
        """The name of the passive values in the graph."""

    @abc.abstractmethod
    def add_join(self, g: GraphBuilder, passive: str, active: str, output: str) -> str:
        """The node of `join`, named `output`."""

    @abc.abstractmethod
    def add_active_only(self, g: GraphBuilder, values: str, name: str) -> str:
        """Values for each active one, with zeros in place of those that do not count; a node, if that takes one."""


@dataclass(frozen=True)
class Halves(Mask):
    """One half of the channels conditions the other."""

    transforms_first: bool = False
    """Whether the first half is active; else the second half is."""

    @property
    def positions(self) -> Hashable:
        """See `Mask`."""
        return "all"

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mask`."""
        first, second = x.chunk(2, dim=1)
        return (second, first) if self.transforms_first else (first, second)

    def join(self, passive: Tensor, active: Tensor) -> Tensor:
        """See `Mask`."""
        return torch.cat((active, passive) if self.transforms_first else (passive, active), dim=1)

    def active_channels(self, active: int) -> npt.NDArray[np.intp]:
        """See `Mask`."""
        return np.arange(active) + (0 if self.transforms_first else active)

    def add_split(self, g: GraphBuilder, x: str, channels: int, name: str) -> tuple[str, str]:
        """See `Mask`."""
        first, second = g.split(x, [channels] * 2, f"{name}.halves")
        return (second, first) if self.transforms_first else (first, second)

    def passive_name(self, name: str) -> str:
        """See `Mask`."""
        return f"{name}.halves.{int(self.transforms_first)}"

    def add_join(self, g: GraphBuilder, passive: str, active: str, output: str) -> str:
        """See `Mask`."""
        halves = [active, passive] if self.transforms_first else [passive, active]
        return g.add("Concat", halves, output, axis=1)

    def add_active_only(self, g: GraphBuilder, values: str, name: str) -> str:
        """See `Mask`."""
        return values


HALVES = Halves()
"""The first half conditions the second."""


@dataclass(frozen=True)
class Checkerboard(Mask):
    """Every second pixel conditions the others."""

    parity: int
    """A pixel is passive if row + column is even (0) or odd (1)."""

    size: ImageSize
    """H and W."""

    @property
    def positions(self) -> Hashable:
        """See `Mask`."""
        return self.parity

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Mask`."""
        return torch.where(self._passive_tensor(x), x, 0.0), x

    def join(self, passive: Tensor, active: Tensor) -> Tensor:
        """See `Mask`."""
        return torch.where(self._passive_tensor(active), passive, active)

    def active_channels(self, active: int) -> npt.NDArray[np.intp]:
        """See `Mask`."""
        return np.arange(active)

    def add_split(self, g: GraphBuilder, x: str, channels: int, name: str) -> tuple[str, str]:
        """See `Mask`."""
        return g.add("Where", [self._constant(g), x, _zero(g)], self.passive_name(name)), x

    def passive_name(self, name: str) -> str:
        """See `Mask`."""
        return f"{name}.passive"

    def add_join(self, g: GraphBuilder, passive: str, active: str, output: str) -> str:
        """See `Mask`."""
        return g.add("Where", [self._constant(g), passive, active], output)

    def add_active_only(self, g: GraphBuilder, values: str, name: str) -> str:
        """See `Mask`."""
        return g.add("Where", [self._constant(g), _zero(g), values], f"{name}.active_only")

    def _passive(self) -> npt.NDArray[np.bool_]:
        """Whether a pixel is passive, [H, W]."""
        rows, columns = np.arange(self.size.height), np.arange(self.size.width)
        passive: npt.NDArray[np.bool_] = (rows[:, None] + columns) % 2 == self.parity
        return passive

    def _passive_tensor(self, like: Tensor) -> Tensor:
        return torch.from_numpy(self._passive()).to(like.device)

    def _constant(self, g: GraphBuilder) -> str:
        return g.constant(f"checkerboard{self.parity}", self._passive())


def _zero(g: GraphBuilder) -> str:
    return g.constant("checkerboard.zero", 0.0)


@singledispatch
def fold_mask(mask: trained.Mask, size: ImageSize) -> Mask:  # noqa: ARG001  # registered functions use it
    """Folds a mask of training, for an input of that size."""
    raise no_folded_form(mask)


@fold_mask.register
def _(mask: trained.ChannelMask, _: ImageSize) -> Mask:
    return Halves(mask.transforms_first)


@fold_mask.register
def _(mask: trained.CheckerboardMask, size: ImageSize) -> Mask:
    return Checkerboard(mask.parity, size)
