"""FoldedGlow: a Glow as plain float64 arrays. Frontends make it from a checkpoint; `graphs` makes ONNX from it.

An actnorm and the 1x1 convolution after it are folded into one matrix and one bias, stored with their inverse. Every
fixed scale is folded into the weights of its convolution. All log-determinants that are the same for every image are
summed into one number.

Shapes: C channels of a level after its squeeze, H W of a level; a convolution is [out, in, k, k] with padding k // 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from glowserve_training.names import step_name

Float64Array = npt.NDArray[np.float64]

# The name of variational dequantization in graphs and messages. It comes before the first step of flow.
DEQUANTIZATION = "dequantization"


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with stride 1, padded with zeros to keep height and width."""

    weight: Float64Array
    """[out, in, k, k]."""

    bias: Float64Array
    """[out]; or [out, H, W], a bias that depends on the position, which padding with other values than 0 folds to."""


ScaleMap = Literal["sigmoid", "inverse_sigmoid", "exp"]
"""How an affine coupling makes its scale of a logit: sigmoid(logit), 1 / sigmoid(logit), or exp(logit)."""

# conv, ReLU, conv, ReLU, conv.
FoldedNetwork = tuple[FoldedConv, FoldedConv, FoldedConv]


@dataclass(frozen=True)
class FoldedDequantization:
    """Variational dequantization, see `glowserve_training.dequantization`.

    Uniform noise is rescaled to u = margin + (1 - 2 margin) noise. Couplings transform z = logit(u), squeezed. The
    network of a coupling reads the first half of z's channels and the squeezed centers of the image's bins, and outputs
    a shift and a logit: z2 becomes (z2 + shift) * 2 sigmoid(logit). Then the halves are swapped. The noise is the
    sigmoid of the result, unsqueezed.
    """

    margin: float
    """The distance that is kept from 0 and from 1."""

    networks: tuple[FoldedNetwork, ...]
    """One for each coupling: [hidden, 6C, 3, 3], [hidden, hidden, 1, 1], [4C, hidden, 3, 3] with C of an image."""


@dataclass(frozen=True)
class FoldedStep:
    """A step of flow: y = matrix x + bias at each position, then a coupling.

    An affine coupling's network outputs a shift in the first half of its channels and the logit of a scale in the
    second half: y2 = (x2 + shift) * scale. An additive coupling's network outputs the shift only.
    """

    matrix: Float64Array
    """[C, C]."""

    bias: Float64Array
    """[C]."""

    inverse_matrix: Float64Array
    """matrix^-1, [C, C]."""

    inverse_bias: Float64Array
    """-matrix^-1 bias, [C]."""

    network: FoldedNetwork
    """[hidden, C/2, 3, 3], [hidden, hidden, 1, 1], [C or C/2, hidden, 3, 3]."""

    scale_map: ScaleMap | None
    """None: the coupling is additive."""

    transforms_first: bool = False
    """Whether the coupling transforms the first half of the channels; else it transforms the second."""

    @property
    def channels(self) -> int:
        """C."""
        return len(self.bias)

    @property
    def affine(self) -> bool:
        """Whether the coupling is affine; else it is additive."""
        return self.scale_map is not None


@dataclass(frozen=True)
class FoldedLevel:
    """A squeeze, steps of flow, and a split, see `glowserve_training.layers.Split`."""

    steps: tuple[FoldedStep, ...]
    """In forward order."""

    prior: FoldedConv | None
    """Predicts mean and log-scale of the second half of the channels from the first half; None at the top level."""


@dataclass(frozen=True)
class FoldedGlow:
    """A whole flow."""

    image_size: int
    """H = W of an image."""

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
    density and of the dequantization."""

    dequantization: FoldedDequantization | None = None
    """None: uniform dequantization."""

    @property
    def dimensions(self) -> int:
        """D, the values of an image."""
        return self.image_size**2 * self.channels

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """[C, H, W] of each level's latents, level 1 first."""
        shapes = []
        for i, level in enumerate(self.levels):
            size, channels = self.image_size >> (i + 1), level.steps[0].channels
            shapes.append((channels if level.prior is None else channels // 2, size, size))
        return shapes

    def named_steps(self) -> Iterator[tuple[str, FoldedStep]]:
        """Each step and its name, in forward order: "level1.step1" first."""
        for i, level in enumerate(self.levels, 1):
            for k, step in enumerate(level.steps, 1):
                yield step_name(i, k), step


def per_channel(values: Float64Array) -> Float64Array:
    """Makes values of channels, [C], broadcast over [N, C, H, W]: [C, 1, 1]. Leaves [C, H, W] as it is."""
    return values if values.ndim == 3 else values[:, None, None]


def condition_number(matrix: Float64Array) -> float:
    """The ratio of the largest to the smallest singular value; infinity if singular."""
    return float(np.linalg.cond(matrix))


def inversion_residual(step: FoldedStep) -> float:
    """The largest entry of |W W^-1 - I| with both matrices rounded to float32, as a graph stores them."""
    rounded = step.matrix.astype(np.float32).astype(np.float64)
    inverse = step.inverse_matrix.astype(np.float32).astype(np.float64)
    return float(np.abs(rounded @ inverse - np.eye(step.channels)).max())
