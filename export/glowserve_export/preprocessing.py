"""Preprocessing: from bins and noise to the flow's input, and back; see `glowserve_training.preprocessing`.

Shapes: N images, H W C of an image, D = H * W * C; [N, C, H, W] inside the flow.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from glowserve_training import preprocessing as trained
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder
from glowserve_export.errors import no_folded_form
from glowserve_export.noise import NoiseNodes
from glowserve_export.terms import Term

DEQUANTIZED = "image.noisy"
"""The tensor of forward.onnx with bins and noise added, [N, H, W, C]."""

FLOW_INPUT = "image.planes"
"""The tensor of forward.onnx with the flow's input, [N, C, H, W]."""


class Preprocessing(abc.ABC):
    """Maps pixels = bins + noise to the flow's input, value by value."""

    @abc.abstractmethod
    def forward(self, bins: Tensor, noise: Tensor, complement: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
        """The flow's input, and each value's log-determinant, both [N, C, H, W]. The complement is 1 - noise."""

    @abc.abstractmethod
    def inverse(self, y: Tensor, n_bits: int) -> Tensor:
        """The pixels of the flow's input; not finite where that is not."""

    @abc.abstractmethod
    def add_forward(
        self,
        g: GraphBuilder,
        bins: str,
        noise: NoiseNodes,
        n_bits: int,
        *,
        image_size: ImageSize,
        channels: int,
    ) -> tuple[str, list[Term]]:
        """The nodes of `forward`: `FLOW_INPUT`, and the log-determinant if it is not 0.

        `constant` is left out of it.

        Args:
            g: the graph.
            bins: [N, H, W, C].
            noise: the noise within the bins.
            n_bits: of each value.
            image_size: H and W.
            channels: C.
        """

    def constant(self, n_bits: int, values: int) -> float:
        """A part of the log-determinant that is the same for every image of D = values, in nats."""
        return 0.0

    @abc.abstractmethod
    def add_reverse(self, g: GraphBuilder, y: str, n_bits: int) -> str:
        """The nodes of `inverse`: the tensor "pixels", [N, H, W, C]."""


class Centring(Preprocessing):
    """y = pixels / 2^n_bits - 0.5."""

    def forward(self, bins: Tensor, noise: Tensor, complement: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
        """See `Preprocessing`."""
        return (bins + noise) / 2**n_bits - 0.5, torch.zeros_like(noise)

    def inverse(self, y: Tensor, n_bits: int) -> Tensor:
        """See `Preprocessing`."""
        pixels: Tensor = (y + 0.5) * 2**n_bits
        return pixels

    def add_forward(
        self,
        g: GraphBuilder,
        bins: str,
        noise: NoiseNodes,
        n_bits: int,
        *,
        image_size: ImageSize,
        channels: int,
    ) -> tuple[str, list[Term]]:
        """See `Preprocessing`."""
        x = g.add("Add", [bins, noise.add()], DEQUANTIZED)
        x = g.add("Mul", [x, g.constant("bin.width", 2.0**-n_bits)], "image.unit")
        x = g.add("Sub", [x, g.constant("half", 0.5)], "image.centred")
        return g.add("Transpose", [x], FLOW_INPUT, perm=[0, 3, 1, 2]), []

    def add_reverse(self, g: GraphBuilder, y: str, n_bits: int) -> str:
        """See `Preprocessing`."""
        x = g.add("Transpose", [y], "image.centred", perm=[0, 2, 3, 1])
        x = g.add("Add", [x, g.constant("half", 0.5)], "image.unit")
        return g.add("Mul", [x, g.constant("bins", 2.0**n_bits)], "pixels")


@dataclass(frozen=True)
class Logit(Preprocessing):
    """y = log s - log(1 - s) with s = alpha + (1 - 2 alpha) pixels / 2^n_bits.

    Both are computed in bins, as log(pixels + margin) - log(2^n_bits - pixels + margin): the factors cancel out.
    """

    alpha: float
    """The distance that s keeps from 0 and from 1."""

    def forward(self, bins: Tensor, noise: Tensor, complement: Tensor, n_bits: int) -> tuple[Tensor, Tensor]:
        """See `Preprocessing`."""
        log_pixels = (bins + noise + self._margin(n_bits)).log()
        log_rest = (2**n_bits - 1 - bins + complement + self._margin(n_bits)).log()
        in_bins = math.log(self._range(n_bits)) - log_pixels - log_rest
        return log_pixels - log_rest, in_bins + self.constant(n_bits, 1)

    def constant(self, n_bits: int, values: int) -> float:
        """See `Preprocessing`; the log-volume of the bins, which the flow's constant takes away again."""
        return values * n_bits * math.log(2)

    def inverse(self, y: Tensor, n_bits: int) -> Tensor:
        """See `Preprocessing`."""
        pixels = torch.sigmoid(y) * self._range(n_bits) - self._margin(n_bits)
        return pixels + (y - y)

    def add_forward(
        self,
        g: GraphBuilder,
        bins: str,
        noise: NoiseNodes,
        n_bits: int,
        *,
        image_size: ImageSize,
        channels: int,
    ) -> tuple[str, list[Term]]:
        """See `Preprocessing`."""
        margin = g.constant("logit.margin", self._margin(n_bits))
        within, complement = noise.add_both()
        x = g.add("Add", [bins, within], DEQUANTIZED)
        x = g.add("Add", [x, margin], "logit.pixels")
        log_pixels = g.add("Log", [x], "logit.pixels.log")
        # What is missing to white has more digits than the difference of the range and the pixels.
        x = g.add("Sub", [g.constant("logit.last_bin", 2.0**n_bits - 1), bins], "logit.rest.bins")
        x = g.add("Add", [x, complement], "logit.rest.noisy")
        x = g.add("Add", [x, margin], "logit.rest")
        log_rest = g.add("Log", [x], "logit.rest.log")
        y = g.add("Sub", [log_pixels, log_rest], "logit")
        minus_log_range = g.constant("logit.minus_log_range", -math.log(self._range(n_bits)))
        minus_log_scale = g.add("Sum", [log_pixels, log_rest, minus_log_range], "logit.minus_log_scale")
        log_det = g.minus_sum(minus_log_scale, channels * image_size.pixels, "logit.log_det")
        planes = g.add("Transpose", [minus_log_scale], f"{minus_log_scale}.planes", perm=[0, 3, 1, 2])
        term = Term(log_det, planes, channels, image_size)
        return g.add("Transpose", [y], FLOW_INPUT, perm=[0, 3, 1, 2]), [term]

    def add_reverse(self, g: GraphBuilder, y: str, n_bits: int) -> str:
        """See `Preprocessing`; y - y is 0, or not a number where y is not finite, which the sigmoid would hide."""
        y = g.add("Transpose", [y], "image.logit", perm=[0, 2, 3, 1])
        x = g.add("Sigmoid", [y], "image.unit")
        x = g.add("Mul", [x, g.constant("bins", self._range(n_bits))], "image.scaled")
        x = g.add("Sub", [x, g.constant("logit.margin", self._margin(n_bits))], "image.bounded")
        return g.add("Add", [x, g.add("Sub", [y, y], "image.zero")], "pixels")

    def _range(self, n_bits: int) -> float:
        """The pixels that s = 0 and s = 1 are apart."""
        return float(2**n_bits) / (1 - 2 * self.alpha)

    def _margin(self, n_bits: int) -> float:
        """Alpha in bins."""
        return self.alpha * self._range(n_bits)


CENTRING = Centring()


@singledispatch
def fold_preprocessing(preprocessing: trained.Preprocessing) -> Preprocessing:
    """Folds the preprocessing of training."""
    raise no_folded_form(preprocessing)


@fold_preprocessing.register
def _(_: trained.Centre) -> Preprocessing:
    return CENTRING


@fold_preprocessing.register
def _(_: trained.Logit) -> Preprocessing:
    return Logit(trained.ALPHA)
