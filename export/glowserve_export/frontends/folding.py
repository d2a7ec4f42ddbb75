"""Folds a Glow of a public implementation into a FoldedGlow.

The public implementations order the channels of a squeeze as 4 c + 2 row + column; SpaceToDepth orders them as
(2 row + column) C + c. Therefore the columns of each level's first matrix are permuted, and the rows of its inverse.
All later channels, latents included, keep the order of the checkpoint.

Shapes: C H W of a level after its squeeze.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from glowserve_training.names import step_name

from glowserve.image_size import ImageSize
from glowserve_export.convolution import Float64Array, FoldedConv
from glowserve_export.couplings import HALVES, FoldedCoupling, FoldedNetwork, Mask, Transform
from glowserve_export.folded import FoldedGlow, FoldedLevel, FoldedStep
from glowserve_export.frontends.checks import check_condition
from glowserve_export.split import FoldedSplit


@dataclass(frozen=True)
class Pixels:
    """How an implementation scales images: its flow sees factor * y + offset, where ours sees y in [-0.5, 0.5)."""

    factor: float
    offset: float


CENTRED = Pixels(1.0, 0.0)
"""(bin + noise) / bins - 0.5, as ours."""

UNIT = Pixels(1.0, 0.5)
"""(bin + noise) / bins."""


@dataclass(frozen=True, kw_only=True)
class PublicGlow:
    """A model of a public implementation, folded, and what the manifest states about it."""

    glow: FoldedGlow
    """The folded flow."""

    width: int
    """Hidden channels of a coupling network."""

    steps_per_level: int
    """Steps of flow in each level."""

    coupling: str
    """"affine" or "additive"."""

    parametrization: str
    """Of the 1x1 convolutions: "lu" or "plain"; or "reverse", a fixed permutation in place of the convolutions."""

    coupling_actnorm: bool
    """Whether the hidden convolutions of the coupling networks have actnorms instead of biases."""

    parameters: int
    """Number of trained parameters."""

    classes: tuple[str, ...] = ()
    """The names of the classes of a class-conditional model."""


@dataclass(frozen=True)
class PublicStep:
    """A step of flow before folding: y = mixing (scale * (x + offset)) at each position, then the coupling."""

    scale: Float64Array
    """Of the actnorm, [C]."""

    offset: Float64Array
    """Of the actnorm, [C]."""

    mixing: Float64Array
    """The 1x1 convolution or permutation, [C, C]."""

    network: FoldedNetwork
    """Of the coupling."""

    mask: Mask = HALVES
    """Of the coupling."""

    def log_det(self) -> float:
        """Of actnorm and mixing at one position."""
        return float(np.linalg.slogdet(self.mixing)[1] + np.log(np.abs(self.scale)).sum())


@dataclass(frozen=True)
class PublicLevel:
    """A squeeze, steps of flow, and a split."""

    steps: Sequence[PublicStep]
    """In forward order."""

    prior: FoldedConv | None
    """As in `FoldedLevel`."""


def fold_public(
    levels: Sequence[PublicLevel],
    *,
    image_size: ImageSize,
    channels: int,
    n_bits: int,
    transform: Transform,
    top: Float64Array,
    pixels: Pixels = CENTRED,
) -> FoldedGlow:
    """Folds a flow.

    Args:
        levels: in forward order.
        image_size: of an image.
        channels: of an image.
        n_bits: bits of each value of an image.
        transform: of every coupling.
        top: mean and log-scale of the top level's prior, concatenated, [2C, H, W]; or [2C], if they are the same at
            each position.
        pixels: how the implementation scales images.

    Raises:
        NotInvertibleError: an actnorm or a 1x1 convolution is singular or nearly so.
    """
    mean, log_scale = np.split(top, 2)
    positions = image_size.halved(len(levels)).pixels
    constant = -image_size.pixels * channels * n_bits * math.log(2)
    constant -= float(log_scale.sum()) * (positions if top.ndim == 1 else 1)
    folded = []
    for i, level in enumerate(levels, 1):
        unfolded = list(level.steps)
        if i == 1:
            unfolded[0] = _after_pixels(unfolded[0], pixels)
        steps = [_fold_step(step, step_name(i, k), transform) for k, step in enumerate(unfolded, 1)]
        steps[0] = _after_space_to_depth(steps[0])
        constant += image_size.halved(i).pixels * sum(step.log_det() for step in unfolded)
        folded.append(FoldedLevel(tuple(steps), FoldedSplit(level.prior) if level.prior else None))
    return FoldedGlow(
        image_size=image_size,
        channels=channels,
        n_bits=n_bits,
        levels=tuple(folded),
        top_mean=mean,
        top_log_scale=log_scale,
        log_det_constant=constant,
    )


def _fold_step(step: PublicStep, name: str, transform: Transform) -> FoldedStep:
    matrix = step.mixing * step.scale
    check_condition(matrix, f"{name}: the 1x1 convolution with its actnorm", "Export an earlier checkpoint")
    return FoldedStep(
        matrix=matrix,
        bias=matrix @ step.offset,
        inverse_matrix=np.linalg.inv(step.mixing) / step.scale[:, None],
        inverse_bias=-step.offset,
        coupling=FoldedCoupling(step.mask, step.network, transform),
    )


def _after_pixels(step: PublicStep, pixels: Pixels) -> PublicStep:
    """The step with the input of our flow."""
    return replace(
        step, scale=step.scale * pixels.factor, offset=(step.offset + pixels.offset) / pixels.factor
    )


def _after_space_to_depth(step: FoldedStep) -> FoldedStep:
    """The step with its input channels in the order of SpaceToDepth."""
    order = np.arange(step.channels).reshape(-1, 4).T.flatten()
    return replace(
        step,
        matrix=step.matrix[:, order],
        inverse_matrix=step.inverse_matrix[order],
        inverse_bias=step.inverse_bias[order],
    )
