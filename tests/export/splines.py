"""Rational-quadratic splines in NumPy and float64, one value and one knot at a time, written from the paper.

Durkan et al. 2019, "Neural Spline Flows", section 3.1 and appendix A.1. Bins are equally wide; heights, and slopes at
knots, are those of a network's outputs. The inverse is found by bisection.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from glowserve_export.couplings import AffineSpline

Array = npt.NDArray[np.float64]


def bend(x: Array, outputs: Array, spline: AffineSpline) -> tuple[Array, Array]:
    """The mapped values and the logarithms of the slopes, [N, C, H, W]; outputs are [N, C, 2K - 1, H, W]."""
    y, log_slope = x.copy(), np.zeros_like(x)
    for place in np.ndindex(x.shape):
        if abs(x[place]) < spline.interval:
            n, c, row, column = place
            y[place], slope = _value_and_slope(x[place], *_knots(outputs[n, c, :, row, column], spline))
            log_slope[place] = np.log(slope)
    return y, log_slope


def unbend(y: Array, outputs: Array, spline: AffineSpline) -> Array:
    """The values before the map."""
    x = y.copy()
    for place in np.ndindex(y.shape):
        if abs(y[place]) < spline.interval:
            n, c, row, column = place
            x[place] = _bisected(y[place], *_knots(outputs[n, c, :, row, column], spline))
    return x


def _knots(outputs: Array, spline: AffineSpline) -> tuple[Array, Array, Array]:
    """The knots of both axes and the slopes at them, [K + 1] each."""
    k, b = spline.bins, spline.interval
    shares = np.tanh(outputs[:k]) + 1 + 2 / k
    ends = np.concatenate(([0.0], np.cumsum(shares))) / shares.sum()
    slopes = np.concatenate(([1.0], 3.0 ** np.tanh(outputs[k:]), [1.0]))
    return np.linspace(-b, b, k + 1), -b + 2 * b * ends, slopes


def _value_and_slope(x: Any, xs: Array, ys: Array, slopes: Array) -> tuple[Any, Any]:
    k = int(np.searchsorted(xs, x, side="right")) - 1
    width, height, d0, d1 = xs[k + 1] - xs[k], ys[k + 1] - ys[k], slopes[k], slopes[k + 1]
    s, t = height / width, (x - xs[k]) / width
    denominator = s + (d0 + d1 - 2 * s) * t * (1 - t)
    value = ys[k] + height * (s * t**2 + d0 * t * (1 - t)) / denominator
    return value, s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / denominator**2


def _bisected(y: Any, xs: Array, ys: Array, slopes: Array) -> Any:
    low, high = xs[0], xs[-1]
    for _ in range(60):
        middle = (low + high) / 2
        if _value_and_slope(middle, xs, ys, slopes)[0] < y:
            low = middle
        else:
            high = middle
    return low
