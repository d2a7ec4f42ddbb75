"""A score among those of the calibration images: the geometry of a histogram with a mark.

Shapes: n calibration images. Lengths are units of the drawing, which has `WIDTH` x `HEIGHT`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 320, 96

_BINS = 32
# The share of the width on each side beyond the calibration images.
_MARGIN = 0.15


@dataclass(frozen=True)
class Histogram:
    """The bits/dim of the calibration images as bars, and where that of one picture is."""

    bars: str
    """The outline of the bars: the `d` of a path."""

    mark: float
    """Where the picture's score is; at the border if it lies beyond."""

    beyond: str
    """"left" or "right" if the score lies beyond the drawing, else ""."""

    low: float
    """The least bits/dim of the calibration images."""

    high: float
    """The largest."""

    low_at: float
    """Where `low` is."""

    high_at: float
    """Where `high` is."""


def histogram(calibration: npt.NDArray[np.float64], score: float) -> Histogram:
    """The histogram of calibration images with the mark of a score.

    Args:
        calibration: their bits/dim, [n], n at least 1.
        score: the picture's bits/dim; may be infinite.
    """
    low, high = float(calibration.min()), float(calibration.max())
    spread = max(high - low, 1e-3 * max(1.0, abs(low)))  # they may be all the same
    left, right = low - _MARGIN * spread, low + (1 + _MARGIN) * spread
    counts, edges = np.histogram(calibration, _BINS, (low, low + spread))

    def at(value: float) -> float:
        return round(WIDTH * (value - left) / (right - left), 1)

    return Histogram(
        bars=_outline(counts, [at(edge) for edge in edges]),
        mark=at(min(max(score, left), right)) if math.isfinite(score) else float(WIDTH),
        beyond="left" if score < left else "" if score <= right else "right",
        low=low,
        high=high,
        low_at=at(low),
        high_at=at(low + spread),
    )


def _outline(counts: npt.NDArray[np.int64], edges: list[float]) -> str:
    tops = [round(HEIGHT * (1 - count / counts.max()), 1) for count in counts.tolist()]
    steps = "".join(f"V{top}H{edge}" for top, edge in zip(tops, edges[1:], strict=True))
    return f"M{edges[0]} {HEIGHT}{steps}V{HEIGHT}Z"
