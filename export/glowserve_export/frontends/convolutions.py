"""How convolutions fold: each function returns a changed `FoldedConv`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from glowserve_training.layers.networks import LOG_SCALE_FACTOR

from glowserve_export.convolution import Float64Array, FoldedConv


def zero_conv(conv: FoldedConv, log_scale: Float64Array) -> FoldedConv:
    """Folds the log-scale of a public implementation's zero-initialized convolution into it.

    The factor on the log-scale is that of the original implementation (openai/glow), which these implementations and
    `glowserve_training.layers.ZeroConv2d` copied.
    """
    return conv.scaled(np.exp(LOG_SCALE_FACTOR * log_scale.reshape(-1)))


def deinterleaved(conv: FoldedConv) -> FoldedConv:
    """Reorders interleaved outputs: the even ones, then the odd ones."""
    outputs = np.arange(len(conv.weight))
    return reordered(conv, np.concatenate((outputs[0::2], outputs[1::2])))


def reordered(conv: FoldedConv, outputs: npt.NDArray[np.intp]) -> FoldedConv:
    """Reorders the output channels: the result's channel i is channel outputs[i]."""
    return FoldedConv(conv.weight[outputs], conv.bias[outputs])
