"""FoldedGlow: a Glow as plain float64 arrays. Frontends make it from a checkpoint; `graphs` makes ONNX from it.

An actnorm and the 1x1 convolution after it are folded into one matrix and one bias, stored with their inverse. Every
fixed scale is folded into the weights of its convolution. All log-determinants that are the same for every image are
summed into one number.

Shapes: C channels of a level after its squeeze, H W of a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from glowserve_training.names import dequantization_coupling_name, pixel_coupling_name, step_name
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder
from glowserve_export.classes import FoldedClasses
from glowserve_export.convolution import Float64Array, FoldedConv
from glowserve_export.couplings import FoldedCoupling
from glowserve_export.dequantization import FoldedDequantization
from glowserve_export.precision import FP32, Precision
from glowserve_export.preprocessing import CENTRING, Preprocessing
from glowserve_export.split import FoldedSplit


@dataclass(frozen=True)
class FoldedStep:
    """A step of flow: y = matrix x + bias at each position, then a coupling."""

    matrix: Float64Array
    """[C, C]."""

    bias: Float64Array
    """[C]."""

    inverse_matrix: Float64Array
    """matrix^-1, [C, C]."""

    inverse_bias: Float64Array
    """-matrix^-1 bias, [C]."""

    coupling: FoldedCoupling
    """Of all C channels."""

    @property
    def channels(self) -> int:
        """C."""
        return len(self.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output in float64, and the log-scale of each of its values; see `FoldedCoupling.forward`."""
        return self.coupling.forward(_mix(self.matrix, self.bias).apply(x))

    def inverse(self, y: Tensor) -> Tensor:
        """The input in float64."""
        return _mix(self.inverse_matrix, self.inverse_bias).apply(self.coupling.inverse(y))

    def add_forward(
        self, g: GraphBuilder, x: str, name: str, precision: Precision = FP32
    ) -> tuple[str, str | None]:
        """The nodes of `forward`; see `FoldedCoupling.add_forward`."""
        x = g.conv(x, _mix(self.matrix, self.bias), f"{name}.mix")
        return self.coupling.add_forward(g, x, name, precision=precision)

    def add_reverse(self, g: GraphBuilder, y: str, name: str, precision: Precision = FP32) -> str:
        """The nodes of `inverse`: a tensor called `name`."""
        x = self.coupling.add_reverse(g, y, name, output=f"{name}.joined", precision=precision)
        return g.conv(x, _mix(self.inverse_matrix, self.inverse_bias), name)


def _mix(matrix: Float64Array, bias: Float64Array) -> FoldedConv:
    return FoldedConv(matrix[:, :, None, None], bias)


@dataclass(frozen=True)
class FoldedLevel:
    """A squeeze, steps of flow, and a split."""

    steps: tuple[FoldedStep, ...]
    """In forward order."""

    split: FoldedSplit | None
    """None at the top level, where all channels are latent."""


@dataclass(frozen=True)
class NamedCoupling:
    """A coupling of a flow."""

    name: str
    """Of its output in forward.onnx; the names of its nodes begin with it."""

    coupling: FoldedCoupling
    """The coupling."""

    size: ImageSize
    """H and W of its input."""


@dataclass(frozen=True)
class FoldedGlow:
    """A whole flow."""

    image_size: ImageSize
    """H and W of an image."""

    channels: int
    """Channels of an image."""

    n_bits: int
    """Bits of each value of an image that the model sees."""

    levels: tuple[FoldedLevel, ...]
    """In forward order: level 1, nearest to the pixels, first."""

    top_mean: Float64Array
    """Mean of the top level's prior, [C]; or [C, H, W], where it depends on the position."""

    top_log_scale: Float64Array
    """Log-scale of the top level's prior, of the same shape."""

    log_det_constant: float
    """The terms of the log-likelihood that are the same for every image, in nats, without those of the standard normal
    density, of the dequantization and of the preprocessing."""

    dequantization: FoldedDequantization | None = None
    """None: uniform dequantization."""

    preprocessing: Preprocessing = CENTRING
    """From bins and noise to the flow's input."""

    pixel_couplings: tuple[FoldedCoupling, ...] = ()
    """Couplings of the preprocessed image, before level 1, in forward order."""

    classes: FoldedClasses | None = None
    """None: the model is not class-conditional, and all latents are standard normal."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of an image."""
        return self.image_size.height, self.image_size.width, self.channels

    @property
    def dimensions(self) -> int:
        """D, the values of an image."""
        return self.image_size.pixels * self.channels

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """[C, H, W] of each level's latents, level 1 first."""
        shapes = []
        for i, level in enumerate(self.levels):
            size, channels = self.image_size.halved(i + 1), level.steps[0].channels
            shapes.append((channels if level.split is None else channels // 2, size.height, size.width))
        return shapes

    def named_steps(self) -> Iterator[tuple[str, FoldedStep]]:
        """Each step and its name, in forward order: "level1.step1" first."""
        for i, level in enumerate(self.levels, 1):
            for k, step in enumerate(level.steps, 1):
                yield step_name(i, k), step

    def flow_couplings(self) -> list[NamedCoupling]:
        """The couplings that both graphs have, in forward order: those of pixels first, then one of each step."""
        couplings = [
            NamedCoupling(pixel_coupling_name(k), coupling, self.image_size)
            for k, coupling in enumerate(self.pixel_couplings, 1)
        ]
        for i, level in enumerate(self.levels, 1):
            size = self.image_size.halved(i)
            couplings += [
                NamedCoupling(step_name(i, k), step.coupling, size) for k, step in enumerate(level.steps, 1)
            ]
        return couplings

    def all_couplings(self) -> list[NamedCoupling]:
        """Those of dequantization too, which forward.onnx alone has."""
        learned = self.dequantization.couplings if self.dequantization else ()
        names = (dequantization_coupling_name(k) for k, _ in enumerate(learned, 1))
        own = [
            NamedCoupling(name, each, self.image_size.halved())
            for name, each in zip(names, learned, strict=True)
        ]
        return own + self.flow_couplings()


def condition_number(matrix: Float64Array) -> float:
    """The ratio of the largest to the smallest singular value; infinity if singular."""
    return float(np.linalg.cond(matrix))


def inversion_residual(step: FoldedStep) -> float:
    """The largest entry of |W W^-1 - I| with both matrices rounded to float32, as a graph stores them."""
    rounded = step.matrix.astype(np.float32).astype(np.float64)
    inverse = step.inverse_matrix.astype(np.float32).astype(np.float64)
    return float(np.abs(rounded @ inverse - np.eye(step.channels)).max())
