"""Variational dequantization, in float64 and as nodes of forward.onnx; see `glowserve_training.dequantization`.

Shapes: N images, H W C of an image; [N, C, H, W] inside the flow, [N, 4C, H/2, W/2] squeezed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from glowserve_training.dequantization import NOISE_MARGIN, VariationalDequantization
from glowserve_training.layers import Squeeze
from glowserve_training.names import DEQUANTIZATION, dequantization_coupling_name
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder
from glowserve_export.couplings import FoldedCoupling, add_minus_log_scales
from glowserve_export.couplings.coupling import LogScales
from glowserve_export.noise import LearnedNoiseNodes
from glowserve_export.terms import Term, add_term


@dataclass(frozen=True)
class LearnedNoise:
    """Noise in float64."""

    noise: Tensor
    """v, [N, C, H, W]."""

    complement: Tensor
    """1 - v, [N, C, H, W]."""

    log_det: Tensor
    """Of each value, for the map from uniform noise to v, [N, C, H, W]."""

    layers: list[tuple[str, Tensor]]
    """The name and the output of each coupling, squeezed."""


@dataclass(frozen=True)
class FoldedDequantization:
    """A learned map of uniform noise to noise.

    Uniform noise is rescaled to u = margin + (1 - 2 margin) noise. Couplings transform logit(u), squeezed. Their
    networks read the passive half of its channels and the squeezed centers of the image's bins. The noise is the
    sigmoid of the result, unsqueezed.
    """

    margin: float
    """The distance that is kept from 0 and from 1."""

    couplings: tuple[FoldedCoupling, ...]
    """In forward order."""

    @classmethod
    def of(cls, dequantization: VariationalDequantization, image_size: ImageSize) -> FoldedDequantization:
        """Folds the dequantization of training."""
        couplings = dequantization.flow_couplings()
        return cls(NOISE_MARGIN, tuple(FoldedCoupling.of(each, image_size.halved()) for each in couplings))

    def forward(self, noise: Tensor, centers: Tensor) -> LearnedNoise:
        """Noise from uniform noise and from the centers of bins, in [-0.5, 0.5), [N, C, H, W] each."""
        squeeze = Squeeze()
        log_u, log_rest = ((x * (1 - 2 * self.margin) + self.margin).log() for x in (noise, 1 - noise))
        log_det = self._constant(1) - log_u - log_rest
        z, _ = squeeze(log_u - log_rest)
        context, _ = squeeze(centers)
        layers = []
        for k, coupling in enumerate(self.couplings, 1):
            z, log_scale = coupling.forward(z, context)
            log_det = log_det + squeeze.inverse(log_scale)[0]
            layers.append((dequantization_coupling_name(k), z))
        z, _ = squeeze.inverse(z)
        log_det = log_det + F.logsigmoid(z) + F.logsigmoid(-z)
        return LearnedNoise(torch.sigmoid(z), torch.sigmoid(-z), log_det, layers)

    def add_forward(
        self, g: GraphBuilder, bins: str, *, n_bits: int, image_size: ImageSize, channels: int
    ) -> LearnedNoiseNodes:
        """The nodes of `forward` but those of v, from bins [N, H, W, C] and the graph's input "noise"."""
        name = DEQUANTIZATION
        z, log_uniforms = self._add_logit(g, name)
        context = _squeezed_centers(g, bins, n_bits, f"{name}.context")
        scales = []
        for k, coupling in enumerate(self.couplings, 1):
            z, log_scale = coupling.add_forward(g, z, dequantization_coupling_name(k), context=context)
            scales += [(coupling, log_scale)] if log_scale else []
        # Minus the logarithms of 1 - v and of v.
        softplus = g.add("Softplus", [z], f"{name}.softplus")
        minus_z = g.add("Neg", [z], f"{name}.minus_z")
        softplus_minus = g.add("Softplus", [minus_z], f"{name}.softplus_minus")
        ends = g.add("Sum", [*log_uniforms, softplus, softplus_minus], f"{name}.minus_log_ends")
        log_det = self._add_log_det(g, ends, scales, channels, image_size.halved())
        return LearnedNoiseNodes(g, log_det, z, softplus_minus, softplus)

    def _add_logit(self, g: GraphBuilder, name: str) -> tuple[str, list[str]]:
        """logit(u), and log u and log(1 - u), all squeezed.

        1 - u is computed from 1 - noise: that difference is exact in float32, and 1 - u near u = 1 is not.
        """
        x = g.add("Transpose", ["noise"], f"{name}.planes", perm=[0, 3, 1, 2])
        x = g.add("SpaceToDepth", [x], f"{name}.squeeze", blocksize=2)
        complement = g.add("Sub", [g.constant("one", 1.0), x], f"{name}.rest")
        factor = g.constant(f"{name}.factor", 1 - 2 * self.margin)
        offset = g.constant(f"{name}.margin", self.margin)
        logs = []
        for uniform, suffix in ((x, "u"), (complement, "1-u")):
            u = g.add("Mul", [uniform, factor], f"{name}.{suffix}.scaled")
            u = g.add("Add", [u, offset], f"{name}.{suffix}")
            logs.append(g.add("Log", [u], f"{name}.{suffix}.log"))
        return g.add("Sub", logs, f"{name}.logit"), logs

    def _add_log_det(
        self, g: GraphBuilder, ends: str, scales: LogScales, channels: int, size: ImageSize
    ) -> Term:
        """The log-determinant of logit, couplings and sigmoid, for C = channels and a squeezed image of that size.

        Its terms nearly cancel, and are therefore added value by value before they are summed.
        """
        name = DEQUANTIZATION
        parts = add_minus_log_scales(g, scales, name)
        x = g.add("Concat", [ends, *(tensor for tensor, _ in parts)], f"{name}.minus_log_dets", axis=1)
        couplings = [coupling for _, group in parts for coupling in group]
        active = [each.mask.active_channels(each.active_channels) for each in couplings]
        squeezed = np.concatenate([np.arange(4 * channels), *active])
        varying = add_term(g, x, len(squeezed), size, f"{name}.varying")
        constant = self._constant(4 * channels * size.pixels)
        total = g.add("Add", [varying.total, g.constant(f"{name}.constant", constant)], f"{name}.log_det")
        return replace(varying, total=total, pixels=squeezed // channels, constant=constant)

    def _constant(self, values: int) -> float:
        """The part of the log-determinant that is the same for every image of so many values, in nats."""
        return values * math.log1p(-2 * self.margin)


def _squeezed_centers(g: GraphBuilder, bins: str, n_bits: int, name: str) -> str:
    """The centers of bins [N, H, W, C], in [-0.5, 0.5), squeezed."""
    x = g.add("Mul", [bins, g.constant("bin.width", 2.0**-n_bits)], f"{name}.unit")
    x = g.add("Add", [x, g.constant("bin.first_middle", 2.0 ** -(n_bits + 1) - 0.5)], f"{name}.centred")
    x = g.add("Transpose", [x], f"{name}.planes", perm=[0, 3, 1, 2])
    return g.add("SpaceToDepth", [x], f"{name}.squeeze", blocksize=2)
