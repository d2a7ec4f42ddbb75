"""BakedGlow: a Glow of plain float64 arrays, between any framework it came from and any graph it becomes.

Actnorm and 1x1 convolution are one matrix and one bias, with their inverse beside them; every fixed scale is folded
into the weights of its convolution; all log-determinants that are the same for every image are one number.

Shapes: at a level, C channels after the squeeze; a convolution is [out, in, k, k] with padding k // 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from glowserve_training.names import step_name

Float64Array = npt.NDArray[np.float64]

# What the learned map of the noise is called; it comes before the first step.
DEQUANTIZATION = "dequantization"


@dataclass(frozen=True)
class BakedConv:
    """A convolution with stride 1 and a border of zeros."""

    weight: Float64Array
    """[out, in, k, k]."""

    bias: Float64Array
    """[out]; or [out, H, W], where it differs from place to place, as beside a border that was not of zeros."""


# conv, ReLU, conv, ReLU, conv.
BakedNetwork = tuple[BakedConv, BakedConv, BakedConv]


@dataclass(frozen=True)
class BakedDequantization:
    """Uniform noise to noise that is likely under the model; see `glowserve_training.dequantization`.

    Noise is drawn in by the margin: u = margin + (1 - 2 margin) noise. On logit(u), squeezed, the couplings follow. A
    network reads the first half of the channels, and behind it the squeezed middles of the image's bins, and yields a
    shift and a logit: x2 becomes (x2 + shift) * 2 sigmoid(logit). Then the halves change places. The sigmoid of the
    whole, unsqueezed, is the noise.
    """

    margin: float
    """Of noise, at either end."""

    networks: tuple[BakedNetwork, ...]
    """Of the couplings: [hidden, 6C, 3, 3], [hidden, hidden, 1, 1], [4C, hidden, 3, 3] with C channels of the image."""


@dataclass(frozen=True)
class BakedStep:
    """y = matrix x + bias at each place; then the coupling.

    The coupling's network is conv, ReLU, conv, ReLU, conv. Of an affine coupling its output is a shift in the
    first half of the channels and, in the second, the logit of the scale: y2 = (x2 + shift) * sigmoid(logit).
    Of an additive coupling it is the shift alone.
    """

    matrix: Float64Array
    """[C, C]."""

    bias: Float64Array
    """[C]."""

    inverse_matrix: Float64Array
    """matrix^-1, [C, C]."""

    inverse_bias: Float64Array
    """-matrix^-1 bias, [C]."""

    network: BakedNetwork
    """[hidden, C/2, 3, 3], [hidden, hidden, 1, 1], [C or C/2, hidden, 3, 3]."""

    affine: bool
    """Affine, or additive."""

    @property
    def channels(self) -> int:
        """C."""
        return len(self.bias)


@dataclass(frozen=True)
class BakedLevel:
    """Squeeze, steps, and the conditional prior of what splits off; see `glowserve_training.layers.Split`."""

    steps: tuple[BakedStep, ...]
    """The steps of flow, nearest to the pixels first."""

    prior: BakedConv | None
    """From the half that goes on to mean and log-scale of the half that does not; None at the top."""


@dataclass(frozen=True)
class BakedGlow:
    """A whole flow."""

    image_size: int
    """H = W."""

    channels: int
    """Of an image."""

    n_bits: int
    """Of a value."""

    levels: tuple[BakedLevel, ...]
    """Nearest to the pixels first."""

    top_mean: Float64Array
    """Of the top level's prior, [C]; or [C, H, W], where it differs from place to place."""

    top_log_scale: Float64Array
    """Of the top level's prior, shaped like its mean."""

    log_det_constant: float
    """Nats: everything in the log-likelihood that is the same for every image, but for ln 2 pi and what is of the
    dequantization."""

    dequantization: BakedDequantization | None = None
    """None if the noise stays uniform."""

    @property
    def dimensions(self) -> int:
        """Values of an image, D."""
        return self.image_size**2 * self.channels

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """[C, H, W] of each level's latents."""
        shapes = []
        for i, level in enumerate(self.levels):
            size, channels = self.image_size >> (i + 1), level.steps[0].channels
            shapes.append((channels if level.prior is None else channels // 2, size, size))
        return shapes

    def named_steps(self) -> Iterator[tuple[str, BakedStep]]:
        """Each step with its name, "level1.step1" nearest to the pixels."""
        for i, level in enumerate(self.levels, 1):
            for k, step in enumerate(level.steps, 1):
                yield step_name(i, k), step


def condition_number(matrix: Float64Array) -> float:
    """The ratio of the largest to the smallest singular value; infinity if singular."""
    return float(np.linalg.cond(matrix))


def inversion_residual(step: BakedStep) -> float:
    """The largest entry of |W W^-1 - I| with both matrices rounded to float32, as a graph holds them."""
    rounded = step.matrix.astype(np.float32).astype(np.float64)
    inverse = step.inverse_matrix.astype(np.float32).astype(np.float64)
    return float(np.abs(rounded @ inverse - np.eye(step.channels)).max())
