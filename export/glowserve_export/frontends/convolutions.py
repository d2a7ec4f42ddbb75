"""How convolutions fold: each function returns a changed `FoldedConv`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from glowserve_training.layers.coupling import LOG_SCALE_FACTOR, SCALE_SHIFT

from glowserve_export.folded import Float64Array, FoldedConv


def scaled(conv: FoldedConv, factor: Float64Array) -> FoldedConv:
    """Multiplies each output channel by its factor, [out]."""
    return FoldedConv(
        conv.weight * factor[:, None, None, None],
        conv.bias * (factor if conv.bias.ndim == 1 else factor[:, None, None]),
    )


def zero_conv(conv: FoldedConv, log_scale: Float64Array) -> FoldedConv:
    """Folds the log-scale of a public implementation's zero-initialized convolution into it.

    The factor on the log-scale is that of the original implementation (openai/glow), which these implementations and
    `glowserve_training.layers.ZeroConv2d` copied.
    """
    return scaled(conv, np.exp(LOG_SCALE_FACTOR * log_scale.reshape(-1)))


def shift_and_logit(conv: FoldedConv) -> FoldedConv:
    """Folds the constant that an affine coupling adds to its logits, the second half of the output channels."""
    bias = conv.bias.copy()
    bias[len(bias) // 2 :] += SCALE_SHIFT
    return FoldedConv(conv.weight, bias)


def deinterleaved(conv: FoldedConv) -> FoldedConv:
    """Reorders interleaved outputs: the even ones, then the odd ones."""
    outputs = np.arange(len(conv.weight))
    return reordered(conv, np.concatenate((outputs[0::2], outputs[1::2])))


def reordered(conv: FoldedConv, outputs: npt.NDArray[np.intp]) -> FoldedConv:
    """Reorders the output channels: the result's channel i is channel outputs[i]."""
    return FoldedConv(conv.weight[outputs], conv.bias[outputs])
