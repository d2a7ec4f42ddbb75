"""Conformal p-values: how an image ranks among images that nothing was fitted to.

For an image that is exchangeable with the n calibration images, P(p <= a) <= a: Vovk, Gammerman and Shafer,
"Algorithmic Learning in a Random World" (2005), chapter 2; for this use Bates et al., "Testing for outliers with
conformal p-values" (2021), arXiv:2104.08279. The probability is over the calibration images and the image together.
Given one calibration, the share of further images with p <= k / (n + 1) is a draw from a beta distribution with
parameters k and n + 1 - k.

Shapes: N images, n calibration images.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

DEFAULT_FALSE_ALARM_RATE = 0.01
"""The rate of `anomalous`, unless the calibration images are too few for it."""


def p_values(values: Float64Array, calibration: Float64Array) -> Float64Array:
    """(1 + how many of n calibration values are at least as large) / (n + 1), [N].

    Args:
        values: of the images, [N]; large is odd. Infinity is odder than every finite value.
        calibration: of the calibration images, [n], in ascending order.
    """
    n = len(calibration)
    at_least = n - np.searchsorted(calibration, values, side="left")
    p: Float64Array = (1 + at_least) / (n + 1)
    return p


def two_sided_p_values(values: Float64Array, calibration: Float64Array) -> Float64Array:
    """min(1, 2 min(p_low, p_high)), [N]: small for values that are among the smallest, or the largest.

    Args:
        values: of the images, [N].
        calibration: of the calibration images, [n], in ascending order.
    """
    high = p_values(values, calibration)
    low = p_values(-values, -calibration[::-1])
    p: Float64Array = np.minimum(1.0, 2 * np.minimum(low, high))
    return p


def resolution(images: int) -> float:
    """The smallest p-value that so many calibration images give."""
    return 1 / (images + 1)


def images_for(rate: float) -> int:
    """How many calibration images a false-alarm rate takes, at least; the rate is above 0 and below 1."""
    images = ceil(1 / Fraction(rate)) - 1
    # A rate such as 1 / 3 is rounded, and so is the resolution that it equals.
    return images - 1 if images > 1 and resolution(images - 1) <= rate else images


def default_false_alarm_rate(images: int) -> float:
    """1 %, or the resolution of so many calibration images if that is coarser."""
    return max(DEFAULT_FALSE_ALARM_RATE, resolution(images))
