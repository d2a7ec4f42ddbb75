"""The terms of a log-likelihood as nodes: each has its values, which arise somewhere in the image, and their sum.

forward.onnx adds up the sums, explain.onnx the values at each place.

Shapes: N images; C channels, H W of the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder


@dataclass(frozen=True)
class Term:
    """A term of the log-likelihood: a constant minus the sum of values."""

    total: str
    """The tensor of the term, [N, 1]."""

    minus: str
    """The tensor of the values, [N, C, H, W]."""

    channels: int
    """C."""

    size: ImageSize
    """H and W: each position stands for a block of pixels of the image."""

    pixels: npt.NDArray[np.intp] | None = None
    """Where a position is a block of 2 x 2 pixels: the pixel, 0 to 3 row by row, at which the values of each channel
    arise, [C]. None: they belong to the whole block."""

    constant: float = 0.0
    """The constant, in nats."""


def add_term(g: GraphBuilder, minus: str, channels: int, size: ImageSize, name: str) -> Term:
    """The nodes of minus the sum of values [N, C, H, W]."""
    return Term(g.minus_sum(minus, channels * size.pixels, name), minus, channels, size)
