"""Splits as float64 arrays, their float64 reference and their nodes; see `glowserve_training.layers.Split`.

Shapes: C channels of a level after its squeeze, H W of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from glowserve_training.layers import Split
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder
from glowserve_export.convolution import FoldedConv
from glowserve_export.terms import Term, add_term


@dataclass(frozen=True)
class FoldedSplit:
    """Makes the second half of the channels latent: z = mean + latent * exp(log_scale)."""

    network: FoldedConv
    """Predicts mean and log-scale from the first half of the channels, which continues to the next level. A bound is
    folded into it."""

    bound: float | None = None
    """B: the log-scale is B tanh of the prediction; None: the prediction itself."""

    @classmethod
    def of(cls, split: Split) -> FoldedSplit:
        """Folds a split of training."""
        network = FoldedConv.of(split.network)
        if split.bound is None:
            return cls(network)
        half = network.outputs // 2
        return cls(network.scaled(np.repeat((1.0, 1 / split.bound), half)), split.bound)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What continues of x [N, C, H, W], the latent, and the latent's log-determinants: [N, C/2, H, W] each."""
        continuing, z = x.chunk(2, dim=1)
        mean, log_scale = self._mean_and_log_scale(continuing)
        return continuing, (z - mean) / log_scale.exp(), -log_scale

    def inverse(self, continuing: Tensor, latent: Tensor) -> Tensor:
        """[N, C, H, W], from both halves of it."""
        mean, log_scale = self._mean_and_log_scale(continuing)
        return torch.cat((continuing, latent * log_scale.exp() + mean), dim=1)

    def add_forward(self, g: GraphBuilder, x: str, size: ImageSize, name: str) -> tuple[str, str, Term]:
        """The nodes of `forward` for an x of that height and width: what continues, the latent, the log-determinant."""
        half = self.network.outputs // 2
        continuing, z = g.split(x, [half, half], f"{name}.split")
        name = f"{name}.prior"
        mean, log_scale = self._add_mean_and_log_scale(g, continuing, name)
        centred = g.add("Sub", [z, mean], f"{name}.centred")
        scale = g.add("Exp", [log_scale], f"{name}.scale")
        latent = g.add("Div", [centred, scale], f"{name}.latent")
        return continuing, latent, add_term(g, log_scale, half, size, f"{name}.log_det")

    def add_reverse(self, g: GraphBuilder, continuing: str, latent: str, name: str) -> str:
        """The nodes of `inverse`."""
        name = f"{name}.prior"
        mean, log_scale = self._add_mean_and_log_scale(g, continuing, name)
        scale = g.add("Exp", [log_scale], f"{name}.scale")
        scaled = g.add("Mul", [latent, scale], f"{name}.scaled")
        z = g.add("Add", [scaled, mean], f"{name}.z")
        return g.add("Concat", [continuing, z], f"{name}.joined", axis=1)

    def _mean_and_log_scale(self, continuing: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.network.apply(continuing).chunk(2, dim=1)
        return mean, raw if self.bound is None else self.bound * torch.tanh(raw)

    def _add_mean_and_log_scale(self, g: GraphBuilder, continuing: str, name: str) -> tuple[str, str]:
        half = self.network.outputs // 2
        x = g.conv(continuing, self.network, f"{name}.conv")
        mean, raw = g.split(x, [half, half], f"{name}.mean_log_scale")
        if self.bound is None:
            return mean, raw
        tanh = g.add("Tanh", [raw], f"{name}.tanh")
        return mean, g.add("Mul", [tanh, g.constant("prior.bound", self.bound)], f"{name}.log_scale")
