"""From the layers of a public Glow to the constants of ours.

The public implementations are alike but for names and the order of channels. Both squeeze into channel
4 c + 2 row + column where SpaceToDepth yields (2 row + column) C + c. So the columns of each level's first matrix are
permuted, and the rows of its inverse; all behind it, latents included, stays in the order of the checkpoint.

Shapes: at a level, C channels after the squeeze, H = W places a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from glowserve_training.names import step_name

from glowserve_export.baked import (
    BakedConv,
    BakedGlow,
    BakedLevel,
    BakedNetwork,
    BakedStep,
    Float64Array,
)
from glowserve_export.frontends.checks import check_condition

# Of the original implementation, and so of both: the factor on a zero convolution's log-scale, and what is added to the
# logit of a coupling's scale.
_LOG_SCALE_FACTOR = 3.0
_LOGIT_SHIFT = 2.0


@dataclass(frozen=True, kw_only=True)
class PublicGlow:
    """A flow that a public implementation trained."""

    glow: BakedGlow
    """Its constants."""

    width: int
    """Hidden channels of a coupling network."""

    steps_per_level: int
    """Steps of flow in a level."""

    coupling: str
    """"affine" or "additive"."""

    parametrization: str
    """Of the 1x1 convolutions: "lu", "plain", or "reverse", which is no parameter but a fixed permutation."""

    coupling_actnorm: bool
    """Whether the coupling networks' hidden convolutions have actnorms instead of biases."""

    parameters: int
    """Numbers that training adjusted."""


@dataclass(frozen=True)
class PublicStep:
    """y = mixing (scale * (x + offset)) at each place; then the coupling."""

    scale: Float64Array
    """Of the actnorm, [C]."""

    offset: Float64Array
    """Of the actnorm, [C]."""

    mixing: Float64Array
    """The 1x1 convolution, or a permutation, [C, C]."""

    network: BakedNetwork
    """As in `BakedStep`."""

    def log_det(self) -> float:
        """Of actnorm and mixing, at one place."""
        return float(np.linalg.slogdet(self.mixing)[1] + np.log(np.abs(self.scale)).sum())


@dataclass(frozen=True)
class PublicLevel:
    """Squeeze, steps, and the conditional prior of what splits off."""

    steps: Sequence[PublicStep]
    """Nearest to the pixels first."""

    prior: BakedConv | None
    """As in `BakedLevel`."""


def fold(
    levels: Sequence[PublicLevel],
    *,
    image_size: int,
    channels: int,
    n_bits: int,
    affine: bool,
    top: Float64Array,
) -> BakedGlow:
    """Folds a flow into constants.

    Args:
        levels: nearest to the pixels first.
        image_size: H = W of an image.
        channels: of an image.
        n_bits: of a value.
        affine: whether couplings are affine, or additive.
        top: mean and, behind it, log-scale of the top level's prior, [2C, H, W].

    Raises:
        NotInvertibleError: an actnorm or a 1x1 convolution is singular or nearly so.
    """
    mean, log_scale = np.split(top, 2)
    constant = -(image_size**2) * channels * n_bits * math.log(2) - float(log_scale.sum())
    baked = []
    for i, level in enumerate(levels, 1):
        steps = [_fold_step(step, step_name(i, k), affine) for k, step in enumerate(level.steps, 1)]
        steps[0] = _behind_our_squeeze(steps[0])
        constant += (image_size >> i) ** 2 * sum(step.log_det() for step in level.steps)
        baked.append(BakedLevel(tuple(steps), level.prior))
    return BakedGlow(
        image_size=image_size,
        channels=channels,
        n_bits=n_bits,
        levels=tuple(baked),
        top_mean=mean,
        top_log_scale=log_scale,
        log_det_constant=constant,
    )


def _fold_step(step: PublicStep, name: str, affine: bool) -> BakedStep:
    matrix = step.mixing * step.scale
    check_condition(
        matrix, f"{name}: the 1x1 convolution behind its actnorm", "Go back to an earlier checkpoint"
    )
    return BakedStep(
        matrix=matrix,
        bias=matrix @ step.offset,
        inverse_matrix=np.linalg.inv(step.mixing) / step.scale[:, None],
        inverse_bias=-step.offset,
        network=step.network,
        affine=affine,
    )


def _behind_our_squeeze(step: BakedStep) -> BakedStep:
    """The step for channels in the order of SpaceToDepth."""
    ours = np.arange(step.channels).reshape(-1, 4).T.flatten()
    return replace(
        step,
        matrix=step.matrix[:, ours],
        inverse_matrix=step.inverse_matrix[ours],
        inverse_bias=step.inverse_bias[ours],
    )


def scaled(conv: BakedConv, factor: Float64Array) -> BakedConv:
    """A convolution with each output times its factor, [out]."""
    return BakedConv(
        conv.weight * factor[:, None, None, None],
        conv.bias * (factor if conv.bias.ndim == 1 else factor[:, None, None]),
    )


def zero_conv(conv: BakedConv, log_scale: Float64Array) -> BakedConv:
    """A convolution that began as zero, with its learned log-scale folded in."""
    return scaled(conv, np.exp(_LOG_SCALE_FACTOR * log_scale.reshape(-1)))


def reordered(conv: BakedConv, outputs: npt.NDArray[np.intp]) -> BakedConv:
    """A convolution with its outputs in another order."""
    return BakedConv(conv.weight[outputs], conv.bias[outputs])


def shift_and_logit(conv: BakedConv) -> BakedConv:
    """An affine coupling's last convolution, shifts first, with what is added to its logits."""
    bias = conv.bias.copy()
    bias[len(bias) // 2 :] += _LOGIT_SHIFT
    return BakedConv(conv.weight, bias)
